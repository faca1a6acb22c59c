# find_package(bnnumba) gives the targets bnnumba::bnnumba, and bnnumba::embed where it is installed.
# Both are components as well: find_package(bnnumba COMPONENTS embed) fails where that one is not.
get_filename_component(_bnnumba_lib "${CMAKE_CURRENT_LIST_DIR}/../.." REALPATH)
get_filename_component(_bnnumba_prefix "${_bnnumba_lib}/.." ABSOLUTE)

foreach(_bnnumba_name bnnumba embed)
  set(_bnnumba_file "${_bnnumba_lib}/libbnnumba.so")
  if(_bnnumba_name STREQUAL "embed")
    set(_bnnumba_file "${_bnnumba_lib}/libbnnumba_embed.so")
  endif()
  if(NOT TARGET bnnumba::${_bnnumba_name} AND EXISTS "${_bnnumba_file}")
    add_library(bnnumba::${_bnnumba_name} SHARED IMPORTED)
    set_target_properties(bnnumba::${_bnnumba_name} PROPERTIES
      IMPORTED_LOCATION "${_bnnumba_file}"
      INTERFACE_INCLUDE_DIRECTORIES "${_bnnumba_prefix}/include")
  endif()
endforeach()

if(NOT TARGET bnnumba::bnnumba)
  set(bnnumba_FOUND FALSE)
  set(bnnumba_NOT_FOUND_MESSAGE "${_bnnumba_lib}/libbnnumba.so is missing")
endif()

foreach(_bnnumba_name ${bnnumba_FIND_COMPONENTS})
  if(TARGET "bnnumba::${_bnnumba_name}")
    set("bnnumba_${_bnnumba_name}_FOUND" TRUE)
  else()
    set("bnnumba_${_bnnumba_name}_FOUND" FALSE)
    if(bnnumba_FIND_REQUIRED_${_bnnumba_name})
      set(bnnumba_FOUND FALSE)
      set(bnnumba_NOT_FOUND_MESSAGE "there is no component ${_bnnumba_name} in ${_bnnumba_lib}")
    endif()
  endif()
endforeach()
