#!/usr/bin/env bash
# Measures everything on a GPU in one session of at most SECONDS_IN_ALL seconds: benchmarks/gpu_session.sh [--quick] [FOLDER]
# Each part is a process with a time limit that writes FOLDER/PART.json continuously; the last one gets all remaining
# time. FOLDER is $OUT or out/gpu by default. --quick is a test run with tiny shapes, also on CPU. PARTS="kernels:60
# limits:30" runs only some parts, with the given time limits.
#
# benchmarks/gpu_session.sh --carry DIR downloads wheels for a machine without access to a package registry. There,
# WHEELS=DIR benchmarks/gpu_session.sh installs the packages that cannot be imported. DIR is .wheels by default.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
wheels=${WHEELS:-.wheels}
# Package=module. Wheels are for Python 3.12; their dependencies come with the machine's own jax and torch.
carried="grain=grain array-record=array_record portpicker=portpicker segmentation-models-pytorch=segmentation_models_pytorch"

if [ "${1:-}" = --carry ]; then
    platforms=""
    for version in 2_28 2_27 2_24 2_17; do platforms="$platforms --platform manylinux_${version}_x86_64"; done
    # shellcheck disable=SC2086
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        $platforms --platform manylinux2014_x86_64 --dest "${2:-$wheels}" $(printf '%s\n' $carried | cut -d= -f1) &&
        ls -l "${2:-$wheels}"
    exit
fi

quick=""
if [ "${1:-}" = --quick ]; then quick=--quick; shift; fi
out=${1:-${OUT:-out/gpu}}
all=${SECONDS_IN_ALL:-570}
status=""
PARTS=${PARTS:-}
mkdir -p "$out"
# The parts then share XLA's autotuning results for convolutions, so compilation is faster.
[ -n "$quick" ] || export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$(mktemp -d)}"

# Missing packages are installed into a separate folder, not into the machine's Python.
if [ -d "$wheels" ]; then
    site=$(mktemp -d)
    for pair in $carried; do
        "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('${pair#*=}') is None)" ||
            "$python" -m pip install --quiet --no-index --find-links "$wheels" --no-deps --target "$site" "${pair%=*}"
    done
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi

# torch.compile takes a minute for each program. All are compiled at once before anything is measured; the parts then find
# them in this cache.
compiled="torch-training torch-inference torch-training-resnet50 torch-inference-resnet50"
if [ -z "$quick$PARTS" ]; then
    TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$(mktemp -d)}
    export TORCHINDUCTOR_CACHE_DIR
    for part in $compiled; do
        timeout -k 5 130 "$python" -m benchmarks.gpu --part "$part" --out "$(mktemp -d)" >>"$out/session.log" 2>&1 &
    done
    wait
    echo "$SECONDS s for torch's programs"
fi

every="limits:40 torch-training:50 training:90 torch-inference:50 inference:60 torch-training-resnet50:60"
every="$every training-resnet50:90 torch-inference-resnet50:60 inference-resnet50:60 kernels:60 convolutions:570"
for entry in ${PARTS:-$every}; do
    part=${entry%:*}
    left=$((all - SECONDS - 10))
    cap=$((left < ${entry#*:} ? left : ${entry#*:}))
    if [ "$cap" -lt 5 ]; then
        echo "$part: skipped, no time is left"
        continue
    fi
    echo "$part, at most $cap s"
    # timeout stops the whole process group, including torch's compile workers; the file keeps the finished measurements.
    timeout -k 5 "$cap" "$python" -m benchmarks.gpu --part "$part" --out "$out" $quick 2>>"$out/session.log" ||
        { echo "$part: ended with exit code $?, see $out/session.log"; status=$quick; }
done
"$python" -m benchmarks.gpu --table --out "$out" || status=table
echo "$SECONDS s in all"
# Only a test run must succeed completely: a session returns what it could measure.
[ -z "$status" ]
