#!/usr/bin/env bash
# Build, test and measure on a machine with a CUDA device and the packages it already has, without a network:
#
#   bench/on_gpu.sh [STEP ...]
#
# Steps, all of them by default: build tests engine-fim engine-overhead peers surrogates guard depthwise ops. Each has a time
# limit. A step that fails or exceeds it does not end the run, unless it is the build; the summary has the state and the seconds of
# each, and the exit status is 0 where all succeeded. `build` does nothing where the sources are those of the last build.
#
# Environment (and default):
#   OUT (build/gpu/results)  folder of the results, one file a benchmark, and of on-gpu.log
#   TOTAL (540)              seconds for all steps together
#   LIMIT                    seconds for each step, instead of its own limit
#   FASTADV_DATA             LFW and weights; bench/subset.py copies what is read of them. Without: no engine-fim, and peers
#                            attack synthetic faces
#   WHEELS                   folder with wheels of the libraries that peers compares with
#   ATTACKS (pgd,fim)        of peers
#   OPERATIONS               of ops; those whose speed is in question (below)
#   WORKERS (8)              test processes
#   FASTADV_CUDA_ARCHITECTURES (90-real), PYTHON (python3), COMMIT (of the checkout)
#   DEVICE (cuda), QUICK     DEVICE=cpu QUICK=1 shows without a GPU that the steps run; it writes no results
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

STEPS=(build tests engine-fim engine-overhead peers surrogates guard depthwise ops)
export OUT=${OUT:-build/gpu/results} TOTAL=${TOTAL:-540} WORKERS=${WORKERS:-8} WHEELS=${WHEELS:-}
export WORK=${WORK:-build/gpu} PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} QUICK=${QUICK:-}
export ATTACKS=${ATTACKS:-pgd,fim} OPERATIONS=${OPERATIONS:-momentum_step_,average_pool,centroid_distances}
export FASTADV_CUDA_ARCHITECTURES=${FASTADV_CUDA_ARCHITECTURES:-90-real} PYTHONUNBUFFERED=1
COMMIT=${COMMIT:-$(git rev-parse HEAD 2>/dev/null)}
export COMMIT

limit_of() {
  case $1 in
    build | peers) echo 240 ;;
    tests) echo 180 ;;
    engine-fim | guard) echo 120 ;;
    *) echo 90 ;;
  esac
}

sources() {
  { echo "$DEVICE $FASTADV_CUDA_ARCHITECTURES"; "$PYTHON" --version
    find CMakeLists.txt pyproject.toml csrc kernels fastadv -type f ! -name '*.so' ! -name '*.pyc' -print0 |
      sort -z | xargs -0 sha256sum; } 2>&1 | sha256sum
}

build() {
  local stamp
  stamp=$(sources)
  if [ "$(cat "$WORK/.sources" 2>/dev/null)" = "$stamp" ]; then
    echo "the sources are those of the last build"
    return
  fi
  rm -rf "$WORK/site" "$WORK/.sources"
  local cuda=on
  [ "$DEVICE" = cpu ] && cuda=off
  FASTADV_CUDA=$cuda "$PYTHON" -m pip install --no-index --no-deps --no-build-isolation --target "$WORK/site" . || return
  if [ -n "$WHEELS" ]; then
    "$PYTHON" -m pip install --no-index --no-deps --target "$WORK/site" "$WHEELS"/*.whl || echo "WHEELS: not installed"
  fi
  echo "$stamp" >"$WORK/.sources"
}

# Beside the source tree, so that the installed package is met with its compiled module.
beside() {
  export PYTHONPATH=$WORK/site PATH="$WORK/site/bin:$PATH"
  cd "$WORK/tree" || exit 2
}

tests() {
  local parallel=()
  "$PYTHON" -c 'import xdist' 2>/dev/null && parallel=(-n "$WORKERS")
  # the operations come last: most of them have run on a GPU
  unset FASTADV_DATA # what bench/subset.py copies is too little for tests
  OMP_NUM_THREADS=1 exec "$PYTHON" -m pytest -v -p no:benchmark -m gpu "${parallel[@]}" \
    tests/engine tests/attacks tests/models tests/surrogates tests/detection tests/defences tests/ops
}

measure() {
  local more=()
  [ -n "$QUICK" ] && more+=(--quick)
  [ "$1" = peers ] && more+=(--only "$ATTACKS")
  [ "$1" = ops ] && more+=(--only "$OPERATIONS" --no-compile)
  exec "$PYTHON" -m bench.run "$1" --json --device "$DEVICE" --out "$OUT" --commit "$COMMIT" "${more[@]}"
}

if [ "${1:-}" = --one ]; then # this script calls itself, since `timeout` runs no function
  case $2 in
    build) build ;;
    tests) beside && tests ;;
    *) beside && measure "$2" ;;
  esac
  exit
fi

chosen=("$@")
[ $# -eq 0 ] && chosen=("${STEPS[@]}")
for name in "${chosen[@]}"; do
  if [[ " ${STEPS[*]} " != *" $name "* ]]; then
    echo "STEP: expected one of ${STEPS[*]}, got $name" >&2
    exit 2
  fi
done

mkdir -p "$OUT" "$WORK"
OUT=$(cd "$OUT" && pwd) WORK=$(cd "$WORK" && pwd)
[ -n "$WHEELS" ] && WHEELS=$(cd "$WHEELS" && pwd)
[ -n "${FASTADV_DATA:-}" ] && FASTADV_DATA=$(cd "$FASTADV_DATA" && pwd) && export FASTADV_DATA
rm -rf "$WORK/tree" && mkdir "$WORK/tree" && cp -r tests bench docs examples pyproject.toml "$WORK/tree/"

summary=() failed=0
for name in "${chosen[@]}"; do
  limit=${LIMIT:-$(limit_of "$name")} left=$((TOTAL - SECONDS)) begin=$SECONDS
  [ "$left" -lt "$limit" ] && limit=$left
  if [ "$name" = engine-fim ] && [ -z "${FASTADV_DATA:-}" ]; then
    state="skipped: FASTADV_DATA is not set"
  elif [ "$name" = depthwise ] && [ "$DEVICE" = cpu ]; then
    state="skipped: measures what is on a GPU only"
  elif [ "$limit" -le 0 ]; then
    state="not run: no time is left"
  elif [ "$name" != build ] && [ ! -e "$WORK/.sources" ]; then
    state="not run: nothing is built"
  else
    echo "== $name, at most $limit s" | tee -a "$OUT/on-gpu.log"
    how=(--signal=INT --kill-after=15)
    # one interrupt, to Python alone: pytest then prints what has failed so far. A build is a shell with processes below
    [ "$name" != build ] && how+=(--foreground)
    timeout "${how[@]}" "$limit" bash bench/on_gpu.sh --one "$name" 2>&1 | tee -a "$OUT/on-gpu.log"
    code=${PIPESTATUS[0]}
    case $code in
      0) state=succeeded ;;
      124 | 137) state="stopped at its limit of $limit s" ;;
      *) state="failed with status $code" ;;
    esac
  fi
  [[ $state == succeeded || $state == skipped* ]] || failed=1
  summary+=("$(printf '%-16s %5d s  %s' "$name" $((SECONDS - begin)) "$state")")
done
{
  echo "== summary of $((SECONDS)) s"
  printf '%s\n' "${summary[@]}"
  echo "results in $OUT:"
  ls "$OUT"
} | tee -a "$OUT/on-gpu.log"
exit $failed
