#!/usr/bin/env bash
# Installs what a command needs and says in words what it cannot install. Used by the Makefile:
#   setup.sh java            is there a Java that Spark runs on?
#   setup.sh main            .venv: the whole pipeline, from requirements/main.lock
#   setup.sh judge           .venv-judge: vLLM, from requirements/judge.lock
#   setup.sh browser         Chromium for the tests that look at the morning page
# An environment is installed again only when its lock file, pyproject.toml or the Python changed.
set -euo pipefail
cd "$(dirname "$0")/.."

UV_VERSION=0.13.8
PYTHON=${PYTHON:-python3}

fail() {
  printf 'sgrec: %s\n' "$@" >&2
  exit 1
}

check_python() {
  command -v "$PYTHON" >/dev/null ||
    fail "no $PYTHON on the PATH. sgrec needs Python 3.11 to 3.13; name yours with: make PYTHON=/path/to/python3.11 ..."
  "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
    fail "$PYTHON is $("$PYTHON" --version 2>&1). sgrec needs Python 3.11 to 3.13; name yours with: make PYTHON=/path/to/python3.11 ..."
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$PYTHON lacks the venv module. Debian, Ubuntu: apt-get install python3-venv"
}

check_java() {
  local java=java
  [ -n "${JAVA_HOME:-}" ] && java=$JAVA_HOME/bin/java
  local how="Debian, Ubuntu: apt-get install openjdk-17-jdk-headless. macOS: brew install openjdk@17. Then set JAVA_HOME if it is not on the PATH."
  command -v "$java" >/dev/null || fail "Spark needs Java 17 or newer and there is no $java." "$how"
  local version
  version=$("$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -1)
  [ "${version:-0}" -ge 17 ] || fail "Spark needs Java 17 or newer; $java is $("$java" -version 2>&1 | head -1)." "$how"
  "$java" --list-modules 2>/dev/null | grep -q '^jdk.incubator.vector' ||
    fail "$java lacks the module jdk.incubator.vector that Spark loads (a cut-down runtime?)." "$how"
}

# install FOLDER LOCK: a virtual environment that holds exactly the lock's versions and this project.
install() {
  local folder=$1 lock=$2
  check_python
  local stamp
  stamp=$(cat "$lock" pyproject.toml requirements/setup.sh <("$PYTHON" --version) | cksum)
  [ "$(cat "$folder/.installed" 2>/dev/null)" = "$stamp" ] && return
  echo "sgrec: installing $lock into $folder (once; some minutes on a slow network)"
  [ -x "$folder/bin/python" ] || "$PYTHON" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
  # uv does not read pip's settings; a mirror or a folder of wheels named for pip must serve it too.
  export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
  [ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}
  "$folder/bin/uv" pip install --quiet --python "$folder/bin/python" --requirements "$lock" ${3:+--overrides "$3"}
  "$folder/bin/uv" pip install --quiet --python "$folder/bin/python" --no-deps --editable .
  echo "$stamp" >"$folder/.installed"
}

find_chromium() {
  command -v chromium || command -v chromium-browser || command -v google-chrome
}

case ${1:-} in
  java) check_java ;;
  main) install .venv requirements/main.lock ;;
  judge) install .venv-judge requirements/judge.lock requirements/judge-overrides.txt ;;
  browser)
    if ! find_chromium >/dev/null; then
      if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "sgrec: installing chromium for the tests of the morning page"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null 2>&1 || true
      fi
      find_chromium >/dev/null || echo "sgrec: no Chromium: the browser tests will be skipped. Debian: apt-get install chromium"
    fi
    ;;
  *) fail "usage: setup.sh java|main|judge|browser" ;;
esac
