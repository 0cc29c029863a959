#!/usr/bin/env bash
# Runs the tests of the PyTorch side (exchange, video language models) with another version of transformers than the one in .venv.
#
#   bash scripts/test_transformers.sh VERSION [pytest arguments]      e.g. bash scripts/test_transformers.sh 4.57.3
#
# The version lands with its dependencies in .venv-transformers-VERSION, which sees the rest of .venv behind it; .venv itself
# is left as it is. Run `bash setup.sh DEVICE=cpu EXTRAS=dev` first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version="${1:?usage: bash scripts/test_transformers.sh VERSION [pytest arguments]}"
shift
[[ "$version" =~ ^[0-9]+\.[0-9]+ ]] || { echo "test_transformers: '$version' is no version" >&2; exit 2; }
[ -x .venv/bin/python ] || { echo "test_transformers: no .venv; run bash setup.sh DEVICE=cpu EXTRAS=dev,llava first" >&2; exit 2; }

venv="$PWD/.venv-transformers-$version"
if [ ! -x "$venv/bin/python" ]; then
  .venv/bin/python -m venv --without-pip "$venv"
  base="$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  own="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  # addsitedir, not a plain path: it also follows the .pth file of the editable install.
  echo "import site; site.addsitedir('$base')" >"$own/base.pth"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "transformers==$version"
"$venv/bin/python" -c "
import codecvit, transformers
assert transformers.__version__ == '$version', transformers.__version__
print('testing', codecvit.__name__, 'with transformers', transformers.__version__, 'from', transformers.__path__[0])"
exec "$venv/bin/python" -m pytest tests/convert tests/llava "$@"
