"""Writes the Python code for proto/ into service/pb: `python -m service.pb.generate [--check]`.

Needs the development packages grpcio-tools and mypy-protobuf. With `--check` nothing is written: it fails when
what is committed differs from what the .proto files say.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROTO = REPOSITORY / "proto"
PACKAGE = Path(__file__).resolve().parent
COMMAND = "python -m service.pb.generate"


class GenerateError(Exception):
    """protoc refused, or is not there."""


def run_protoc(arguments: list[str]) -> None:
    """Runs protoc with its well-known types on the include path."""
    try:
        import grpc_tools
        from grpc_tools import protoc
    except ImportError:
        raise GenerateError("grpcio-tools is not installed: install requirements/dev.txt") from None
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    if protoc.main(["protoc", f"-I{PROTO}", f"-I{well_known}", *arguments]) != 0:
        raise GenerateError("protoc failed, see above")


def below_package(text: str) -> str:
    """Generated code with its imports of `backprop.v1` turned to where it lies: `service.pb.backprop.v1`."""
    return re.sub(r"^from backprop\.v1 import", "from service.pb.backprop.v1 import", text, flags=re.MULTILINE)


def generated() -> Mapping[Path, str]:
    """Every generated file, by its path below service/pb."""
    protos = sorted(PROTO.glob("backprop/v1/*.proto"))
    services = [path for path in protos if re.search(r"^service ", path.read_text(), flags=re.MULTILINE)]
    plugin = Path(sys.executable).parent / "protoc-gen-mypy_grpc"
    if not plugin.exists():
        raise GenerateError("mypy-protobuf is not installed: install requirements/dev.txt")
    with tempfile.TemporaryDirectory(prefix="backprop-pb-") as directory:
        run_protoc([f"--python_out={directory}", f"--pyi_out={directory}", *map(str, protos)])
        run_protoc(
            [
                f"--plugin=protoc-gen-mypy_grpc={plugin}",
                f"--grpc_python_out={directory}",
                f"--mypy_grpc_out=quiet:{directory}",
                *map(str, services),
            ]
        )
        files = [path for path in Path(directory).rglob("*.py*") if path.is_file()]
        return {path.relative_to(directory): below_package(path.read_text()) for path in files}


def committed() -> Mapping[Path, str]:
    """Every generated file as it lies in service/pb."""
    return {path.relative_to(PACKAGE): path.read_text() for path in PACKAGE.glob("backprop/v1/*_pb2*.py*")}


def main(arguments: list[str]) -> int:
    """Exit code 0 when all is written, or with --check up to date; 1 when it is not; 2 for wrong usage."""
    if arguments not in ([], ["--check"]):
        print(f"{COMMAND}: got {' '.join(arguments)}, expected nothing or --check", file=sys.stderr)
        return 2
    try:
        new, old = generated(), committed()
    except GenerateError as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return 1
    changed = sorted(str(path) for path in new.keys() | old.keys() if new.get(path) != old.get(path))
    if arguments == ["--check"]:
        if changed:
            print(f"service/pb differs from proto/ in {', '.join(changed)}: run `{COMMAND}`", file=sys.stderr)
        return 1 if changed else 0
    for path in old.keys() - new.keys():
        (PACKAGE / path).unlink()
    for path, text in new.items():
        (PACKAGE / path).write_text(text)
    print(f"service/pb: {len(changed)} of {len(new)} files changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
