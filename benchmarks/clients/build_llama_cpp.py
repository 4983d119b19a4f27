"""
Builds llama.cpp from the source that the sdist of llama-cpp-python carries: ten minutes on two cores, once.

    python benchmarks/clients/build_llama_cpp.py FOLDER --python PYTHON

PYTHON is one with pip and scikit-build-core; cmake, ninja and a C++ compiler are the system's. In FOLDER are then
`source`, the sdist, `build`, whose `bin` holds the programs and the library, and `version`.
"""

import argparse
import subprocess
import tarfile
from pathlib import Path


VERSION = "0.3.36"
TARGETS = ("llama-quantize", "llama-perplexity", "llama-bench", "llama-server", "llama-speculative-simple")
LEFT_OUT = ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_WEBUI")


def download_source(folder: Path, python: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    download = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    download += ["--no-binary", ":all:", "--dest", folder]
    subprocess.run([*download, f"llama-cpp-python=={VERSION}"], check=True)
    with tarfile.open(folder / f"llama_cpp_python-{VERSION}.tar.gz") as sdist:
        sdist.extractall(folder, filter="data")
    (folder / f"llama_cpp_python-{VERSION}").rename(folder / "source")


def build(folder: Path, python: str) -> Path:
    """Builds llama.cpp in a folder, unless it is there."""
    finished = folder / "version"
    if finished.exists() and finished.read_text().strip() == VERSION:
        return folder
    if not (folder / "source").exists():
        download_source(folder, python)
    source = folder / "source" / "vendor" / "llama.cpp"
    configure = ["cmake", "-S", source, "-B", folder / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run([*configure, *(f"-D{name}=OFF" for name in LEFT_OUT)], check=True)
    subprocess.run(["cmake", "--build", folder / "build", "--target", *TARGETS], check=True)
    finished.write_text(VERSION)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", required=True)
    args = parser.parse_args()
    build(args.folder, args.python)
