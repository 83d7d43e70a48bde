#!/bin/sh
# Install the libraries that `fastadv bench peers` compares with: bench/peers/install.sh [VENV]
#
# VENV is a virtual environment that has fastadv (default: the active one, else .venv). Every library comes by its exact
# version without its dependencies: their pins are older than what fastadv needs (torchattacks pins requests 2.25), or
# do not build (adv-lib's visdom). What they import on the way is eagerpy, six, tqdm and requests; adv-lib's imports of
# visdom and torchvision are replaced in bench/peers/adv_lib.py. The versions are in bench/peers/versions.py alone.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=${1:-${VIRTUAL_ENV:-.venv}}/bin/python
if [ ! -x "$python" ]; then
  echo "VENV: expected a virtual environment, got ${1:-${VIRTUAL_ENV:-.venv}}; make one with 'make test'" >&2
  exit 2
fi
# shellcheck disable=SC2046  # one argument for each package
"$python" -m pip install --quiet --no-deps --disable-pip-version-check $("$python" "$here/versions.py" --requirements)
"$python" "$here/versions.py"
