#!/usr/bin/env python3
"""Writes static archives libcuda.a, libcublas.a, ... that stand in for NVIDIA's shared libraries when a program is linked.

    scripts/cuda-stubs.py FOLDER CUDA_HOME

Each function in them is a jump that opens the real library at its first call. So one program starts on a machine without a
driver too; there every call returns an error, and `nepa_stub_NAME_error()` says which files were tried and what the
dynamic loader answered. The functions are those that our Rust bindings (cudarc, nvjpeg-sys) declare. libcudart_static.a
of the toolkit opens the driver by itself, and is only put beside the others. x86-64 Linux only.
"""
import argparse, json, pathlib, platform, re, shutil, subprocess, sys, tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

# name: (file that is opened, error that a call returns where it is missing, crate, file with the bindings, first letters).
# The errors: CUDA_ERROR_STUB_LIBRARY, *_STATUS_NOT_INITIALIZED, ncclSystemError, CURAND_STATUS_INITIALIZATION_FAILED,
# NVRTC_ERROR_INTERNAL_ERROR.
LIBRARIES = {
    "cuda": ("libcuda.so.1", 34, "cudarc", "src/driver/sys/mod.rs", "cu"),
    "cublas": ("libcublas.so.13", 1, "cudarc", "src/cublas/sys/mod.rs", "cublas"),
    "cublasLt": ("libcublasLt.so.13", 1, "cudarc", "src/cublaslt/sys/mod.rs", "cublasLt"),
    "nccl": ("libnccl.so.2", 2, "cudarc", "src/nccl/sys/mod.rs", "nccl"),
    "curand": ("libcurand.so.10", 203, "cudarc", "src/curand/sys/mod.rs", "curand"),
    "nvrtc": ("libnvrtc.so.13", 11, "cudarc", "src/nvrtc/sys/mod.rs", "nvrtc"),
    "nvjpeg": ("libnvjpeg.so.13", 1, "nvjpeg-sys", "src/bindings.rs", "nvjpeg"),
}

# One for each function; %r11 is nobody's in the calling convention.
JUMP = """
    .section .text.{function}, "ax", @progbits
    .globl {function}
    .type {function}, @function
{function}:
    endbr64
    movq {slots}+{offset}(%rip), %r11
    testq %r11, %r11
    jz 0f
    jmp *%r11
0:  movl ${index}, %r11d
    jmp {bind}
    .size {function}, .-{function}
"""

# First call: every register that may carry an argument is kept while C code looks the function up. 200 bytes also restore
# the alignment of the stack to 16.
BIND = """
    .section .text.{bind}, "ax", @progbits
    .type {bind}, @function
{bind}:
    subq $200, %rsp
    {save}
    movl %r11d, %edi
    call {find}
    movq %rax, %r11
    {restore}
    addq $200, %rsp
    jmp *%r11
    .size {bind}, .-{bind}
    .bss
    .balign 8
    .globl {slots}
    .hidden {slots}
{slots}:
    .zero {bytes}
    .section .note.GNU-stack, "", @progbits
"""

FIND = r"""
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HIDDEN __attribute__((visibility("hidden")))
HIDDEN extern void *@slots@[];
static const char *const functions[] = {@functions@};
static void *library;
static char report[4096];
static pthread_mutex_t report_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void note(const char *text)
{
    pthread_mutex_lock(&report_lock);
    size_t used = strlen(report);
    snprintf(report + used, sizeof report - used, "%s%s", used ? "; " : "", text);
    pthread_mutex_unlock(&report_lock);
}

static void try(const char *folder, const char *below)
{
    char path[1024];
    if (library || !folder)
        return;
    int length = snprintf(path, sizeof path, "%s%s%s", folder, below, "@file@");
    if (length < 0 || length >= (int)sizeof path)
        return;
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *why = dlerror();
        note(why ? why : path);
    }
}

/* The loader's own places first (LD_LIBRARY_PATH, ld.so.conf). The driver is nowhere else. */
static void open_library(void)
{
    try("", "");
    if (@is_driver@)
        return;
    try(getenv("CUDA_HOME"), "/lib64/");
    try(getenv("CUDA_HOME"), "/lib/");
    try("/usr/local/cuda", "/lib64/");
    /* Where scripts/cuda-toolkit.sh puts them. */
    const char *cache = getenv("XDG_CACHE_HOME");
    if (cache && *cache)
        try(cache, "/nepa-cuda-13.0/lib/");
    else
        try(getenv("HOME"), "/.cache/nepa-cuda-13.0/lib/");
    if (library)
        report[0] = 0;
}

/* Null, or what was tried in vain. */
const char *nepa_stub_@name@_error(void)
{
    pthread_once(&once, open_library);
    return library ? 0 : report;
}

/* What a function that is missing becomes. */
static int fail(void) { return @error@; }
static const char *text(void) { return report; }
static int text_into(int error, const char **out)
{
    (void)error;
    *out = report;
    return 0;
}

HIDDEN void *@find@(unsigned index)
{
    const char *function = functions[index];
    pthread_once(&once, open_library);
    void *found = library ? dlsym(library, function) : 0;
    if (!found) {
        if (library) {
            char line[256];
            snprintf(line, sizeof line, "@file@ has no function %s", function);
            note(line);
        }
        if (!strcmp(function, "cuGetErrorString") || !strcmp(function, "cuGetErrorName"))
            found = (void *)text_into;
        else if (strstr(function, "GetErrorString") || strstr(function, "GetLastError") || strstr(function, "GetStatusString") || strstr(function, "GetStatusName"))
            found = (void *)text;
        else
            found = (void *)fail;
    }
    __atomic_store_n(&@slots@[index], found, __ATOMIC_RELEASE);
    return found;
}
"""


def crate_folders():
    """Where cargo keeps the sources of the bindings, in the versions of Cargo.lock."""
    command = ["cargo", "metadata", "--locked", "--format-version=1", "--features=nepa-trainer/cuda"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    return {package["name"]: pathlib.Path(package["manifest_path"]).parent for package in metadata["packages"]}


def assembly(name, functions):
    names = {"slots": f"nepa_stub_{name}_slots", "bind": f"nepa_stub_{name}_bind", "find": f"nepa_stub_{name}_find"}
    places = [(f"%{register}", "movq") for register in "rax rdi rsi rdx rcx r8 r9 r10".split()]
    places = [(register, move, 128 + 8 * i) for i, (register, move) in enumerate(places)]
    places += [(f"%xmm{i}", "movups", 16 * i) for i in range(8)]
    save = "\n    ".join(f"{move} {register}, {offset}(%rsp)" for register, move, offset in places)
    restore = "\n    ".join(f"{move} {offset}(%rsp), {register}" for register, move, offset in places)
    jumps = [JUMP.format(function=function, index=i, offset=8 * i, **names) for i, function in enumerate(functions)]
    return "".join(jumps) + BIND.format(save=save, restore=restore, bytes=8 * len(functions), **names)


def write_archive(folder, name, functions):
    file, error = LIBRARIES[name][:2]
    replace = {
        "name": name, "file": file, "error": str(error), "is_driver": str(int(name == "cuda")),
        "slots": f"nepa_stub_{name}_slots", "find": f"nepa_stub_{name}_find",
        "functions": ", ".join(f'"{function}"' for function in functions),
    }
    source = re.sub("@(" + "|".join(replace) + ")@", lambda match: replace[match[1]], FIND)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        objects = []
        for part, text in (("jumps.S", assembly(name, functions)), ("find.c", source)):
            (scratch / part).write_text(text)
            objects.append(f"{name}-{part}.o")
            subprocess.run(["cc", "-c", "-O2", "-fPIC", "-Wall", "-o", objects[-1], part], cwd=scratch, check=True)
        archive = folder.resolve() / f"lib{name}.a"
        archive.unlink(missing_ok=True)
        subprocess.run(["ar", "rcsD", archive, *objects], cwd=scratch, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("cuda_home", type=pathlib.Path, metavar="CUDA_HOME")
    options = parser.parse_args()
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit(f"error: the jumps are written for x86-64 Linux; this is {platform.machine()} {platform.system()}. "
                 "Build with --features cuda without them, against the toolkit's own libraries.")
    for tool in ("cc", "ar"):
        if not shutil.which(tool):
            sys.exit(f"error: {tool} was not found; install a C compiler with binutils (make setup)")
    options.folder.mkdir(parents=True, exist_ok=True)
    folders = crate_folders()
    for name, (file, _, crate, bindings, prefix) in LIBRARIES.items():
        source = (folders[crate] / bindings).read_text()
        functions = sorted(set(re.findall(rf"^\s*(?:pub )?fn ({prefix}[A-Za-z]\w*)\(", source, re.MULTILINE)))
        if not functions:
            sys.exit(f"error: {folders[crate] / bindings} declares no function {prefix}*: its layout has changed")
        write_archive(options.folder, name, functions)
        print(f"lib{name}.a: {len(functions)} functions of {file}")
    places = [options.cuda_home / place for place in ("lib64", "lib", "targets/x86_64-linux/lib")]
    found = [place / "libcudart_static.a" for place in places if (place / "libcudart_static.a").is_file()]
    if not found:
        sys.exit(f"error: there is no libcudart_static.a in {', '.join(map(str, places))}")
    shutil.copyfile(found[-1], options.folder / "libcudart.a")


if __name__ == "__main__":
    main()
