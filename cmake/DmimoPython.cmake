# SPDX-License-Identifier: GPL-3.0-or-later
# Sets PYTHON_EXECUTABLE to an interpreter that can import GNU Radio, and GR_PYTHON_DIR for the prefix.

# Prints the interpreter's path when it can import GNU Radio. A virtual environment can, too, but what is installed for
# it is not seen by GRC: its base interpreter comes later in the list.
set(_probe "import sys; from gnuradio import gr; print(sys.executable); sys.exit(sys.prefix != sys.base_prefix)")

function(_dmimo_try interpreter result)
    execute_process(
        COMMAND ${interpreter} -c "${_probe}"
        RESULT_VARIABLE code
        OUTPUT_VARIABLE found
        ERROR_VARIABLE error
        OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_STRIP_TRAILING_WHITESPACE)
    string(REGEX REPLACE ".*\n" "" found "${found}")
    string(REGEX REPLACE ".*\n" "" error "${error}")
    if(IS_ABSOLUTE "${found}" AND EXISTS "${found}" AND (code EQUAL 0 OR "${ARGN}" STREQUAL "ANY"))
        set(${result} "${found}" PARENT_SCOPE)
    else()
        set(${result} "" PARENT_SCOPE)
        set(why "${error}")
        if(IS_ABSOLUTE "${found}")
            set(why "a virtual environment")
        elseif(NOT why)
            set(why "is no Python interpreter (exit code ${code})")
        endif()
        set(_dmimo_tried "${_dmimo_tried}\n  ${interpreter}: ${why}" PARENT_SCOPE)
    endif()
endfunction()

set(_dmimo_tried "")
set(_found "")
if(PYTHON_EXECUTABLE) # the user's choice, or that of an earlier run: never replaced in silence
    _dmimo_try("${PYTHON_EXECUTABLE}" _found ANY)
else()
    find_program(_dmimo_python3 python3 NO_CACHE)
    foreach(_candidate ${_dmimo_python3} /usr/bin/python3 /usr/local/bin/python3)
        if(NOT _found AND EXISTS ${_candidate})
            _dmimo_try("${_candidate}" _found)
        endif()
    endforeach()
endif()
if(NOT _found)
    message(FATAL_ERROR "No Python interpreter that can import GNU Radio. Tried:${_dmimo_tried}\n"
                        "Install GNU Radio 3.10 (Debian, Ubuntu: apt-get install gnuradio), or name the interpreter it "
                        "is built for: cmake -DPYTHON_EXECUTABLE=/path/to/python3")
endif()
set(PYTHON_EXECUTABLE "${_found}" CACHE FILEPATH "Python interpreter that can import GNU Radio" FORCE)

# Under the prefix that GNU Radio itself lives in, install beside it (/usr: lib/python3/dist-packages on Debian).
# Elsewhere GrPython chooses: for /usr/local the directory that the interpreter searches there.
if(NOT DEFINED GR_PYTHON_DIR)
    execute_process(
        COMMAND
            ${PYTHON_EXECUTABLE} -c
            "import gnuradio, os, sys
beside = os.path.dirname(os.path.dirname(os.path.realpath(gnuradio.__file__)))
inside = os.path.relpath(beside, os.path.realpath(sys.argv[1]))
print('' if inside.split(os.sep)[0] in ('..', 'local') else inside)" "${CMAKE_INSTALL_PREFIX}"
        OUTPUT_VARIABLE _beside OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(_beside)
        set(GR_PYTHON_DIR "${_beside}")
    endif()
endif()

# What the module imports when it runs; all of it is in apt.
execute_process(
    COMMAND
        ${PYTHON_EXECUTABLE} -c
        "import importlib.util as u
names = 'numpy scipy matplotlib click rich yaml jsonschema h5py distributed'.split()
print(' '.join(name for name in names if u.find_spec(name) is None))"
    OUTPUT_VARIABLE _missing OUTPUT_STRIP_TRAILING_WHITESPACE)
if(_missing)
    message(WARNING "Missing for ${PYTHON_EXECUTABLE}, needed to run: ${_missing} (scripts/bootstrap installs them)")
endif()
