// libnvrtc.so: compiles a kernel's source as C++ with the host's compiler. The "machine code" is a shared library behind
// a head (image.h).
//
// STANDIN_HOME        the folder with kernel.h
// STANDIN_CXX         the compiler, g++ if not set
// STANDIN_CXXFLAGS    more flags, as for sanitizers
// STANDIN_MUTATION    a bug to plant: FILE|OLD|NEW, where OLD stands in FILE
#include "image.h"
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <regex>
#include <string>
#include <unistd.h>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

enum Result { SUCCESS = 0, INVALID_OPTION = 5, COMPILATION = 6, BUILTIN_OPERATION_FAILURE = 7 };

struct Program {
    std::string source, name, log;
    std::vector<char> code;
};

static std::string setting(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value ? value : otherwise;
}

static std::string content(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// A version that NVIDIA's compiler never had, and another for other settings, so that no cache takes one's code for the
// other's.
API nvrtcVersion(int* major, int* minor) {
    const std::string settings = setting("STANDIN_CXX", "g++") + setting("STANDIN_CXXFLAGS", "") +
                                 setting("STANDIN_MUTATION", "") + content(setting("STANDIN_HOME", ".") + "/kernel.h") +
                                 content(setting("STANDIN_HOME", ".") + "/runtime.h");
    *major = 0;
    *minor = int(std::hash<std::string>()(settings) & 0x7fffffff);
    return SUCCESS;
}

extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(int) { return "an error of the stand-in"; }

API nvrtcCreateProgram(void** program, const char* source, const char* name, int, const char* const*, const char* const*) {
    *program = new Program{source, name ? name : "kernel.cu", "", {}};
    return SUCCESS;
}

API nvrtcDestroyProgram(void** program) {
    delete static_cast<Program*>(*program);
    *program = nullptr;
    return SUCCESS;
}

// What the options leave to do, or the complaint about them.
static bool understands(const std::string& option) {
    static const std::regex known("--std=c\\+\\+17|--fmad=false|--gpu-architecture=sm_(80|86|89|90|100|120)");
    return std::regex_match(option, known);
}

// Plants the bug of STANDIN_MUTATION if it is for this file.
static bool mutate(Program& program) {
    const std::string mutation = setting("STANDIN_MUTATION", "");
    const size_t first = mutation.find('|'), second = mutation.find('|', first + 1);
    if (second == std::string::npos || mutation.substr(0, first) != program.name) {
        return true;
    }
    const std::string old = mutation.substr(first + 1, second - first - 1);
    const size_t at = program.source.find(old);
    if (at == std::string::npos) {
        program.log = "the mutation's text doesn't stand in " + program.name;
        return false;
    }
    program.source.replace(at, old.size(), mutation.substr(second + 1));
    return true;
}

// The source as C++, with an entry for each kernel.
static std::string as_cpp(const Program& program) {
    std::string entries;
    static const std::regex kernel("extern \"C\" __global__ void (\\w+)\\(");
    for (std::sregex_iterator found(program.source.begin(), program.source.end(), kernel), end; found != end; ++found) {
        entries += "STANDIN_ENTRY(" + (*found)[1].str() + ")\n";
    }
    return "#include \"kernel.h\"\n" + program.source + "\n#line 1 \"entries\"\n" + entries;
}

// Runs the compiler without the libraries that are loaded into this process for the kernels' sake.
static bool run_compiler(Program& program, const std::string& folder) {
    std::ofstream(folder + "/kernel.cpp") << as_cpp(program);
    const std::string command =
        "LD_PRELOAD= LD_LIBRARY_PATH= " + setting("STANDIN_CXX", "g++") + " -std=c++17 -O2 -g -march=native -shared -fPIC " +
        "-fvisibility=hidden -fno-strict-aliasing -ffp-contract=off -Wno-attributes " + setting("STANDIN_CXXFLAGS", "") +
        " -I'" + setting("STANDIN_HOME", ".") + "' '" + folder + "/kernel.cpp' -o '" + folder + "/kernel.so' > '" + folder +
        "/log' 2>&1";
    const bool compiled = system(command.c_str()) == 0;
    program.log = content(folder + "/log");
    const std::string library = content(folder + "/kernel.so");
    standin::ImageHead head;
    memcpy(head.mark, standin::IMAGE_MARK, sizeof head.mark);
    head.bytes = library.size();
    const char* bytes = reinterpret_cast<const char*>(&head);
    program.code.assign(bytes, bytes + sizeof head);
    program.code.insert(program.code.end(), library.begin(), library.end());
    return compiled;
}

API nvrtcCompileProgram(void* handle, int count, const char* const* options) {
    auto& program = *static_cast<Program*>(handle);
    for (int i = 0; i < count; ++i) {
        if (!understands(options[i])) {
            program.log = std::string("nvrtc: error: invalid value for option ") + options[i];
            return INVALID_OPTION;
        }
    }
    if (!mutate(program)) {
        return COMPILATION;
    }
    char folder[] = "/tmp/standin-XXXXXX";
    if (!mkdtemp(folder)) {
        return BUILTIN_OPERATION_FAILURE;
    }
    const bool compiled = run_compiler(program, folder);
    for (const char* file : {"/kernel.cpp", "/kernel.so", "/log"}) {
        unlink((std::string(folder) + file).c_str());
    }
    rmdir(folder);
    return compiled ? SUCCESS : COMPILATION;
}

API nvrtcGetCUBINSize(void* handle, size_t* bytes) {
    *bytes = static_cast<Program*>(handle)->code.size();
    return SUCCESS;
}
API nvrtcGetCUBIN(void* handle, char* code) {
    const auto& program = *static_cast<Program*>(handle);
    memcpy(code, program.code.data(), program.code.size());
    return SUCCESS;
}
API nvrtcGetProgramLogSize(void* handle, size_t* bytes) {
    *bytes = static_cast<Program*>(handle)->log.size() + 1;
    return SUCCESS;
}
API nvrtcGetProgramLog(void* handle, char* log) {
    strcpy(log, static_cast<Program*>(handle)->log.c_str());
    return SUCCESS;
}
