# shellcheck shell=bash
# Sourced by scripts/quickstart, scripts/test and scripts/host: `install_locked LOCK` makes <clone>/.venv hold exactly the packages
# of a lock file, and the project itself in editable form. It does nothing when nothing has changed since.

CLONE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$CLONE/.venv

# Print the path of a Python >= 3.11: $PYTHON if that is set, otherwise the first one found.
find_python() {
    local name path version found=""
    for name in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3 python}; do
        path=$(command -v "$name") || continue  # a version manager may have a name that does not run, too
        version=$("$path" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$path"
            return
        fi
        found+=" $path ($version)"
    done
    echo "adaptlab needs Python 3.11 or newer; found:${found:- nothing that runs as ${PYTHON:-python3}}." >&2
    echo "Install one (Debian: apt-get install python3 python3-venv), or name it: PYTHON=/path/to/python3 $0" >&2
    return 1
}

# Debian ships Python without what `python -m venv` needs.
ensure_venv_module() {
    local python=$1 package as_root=""
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" != 0 ]; then
        as_root="sudo "
    elif command -v apt-get >/dev/null; then
        echo "Installing $package, which this Python needs to make environments"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$package" &&
            return
    fi
    echo "$python cannot make environments: its ensurepip or venv module is missing." >&2
    echo "On Debian or Ubuntu: ${as_root}apt-get install $package; then run $0 again." >&2
    return 1
}

# What an installation depends on: the locks, the project file, this file, and where the clone stands.
_fingerprint() {
    (cd "$CLONE" && { pwd && cat requirements.lock requirements-dev.lock pyproject.toml scripts/install.sh; }) |
        sha256sum | cut -d' ' -f1
}

# install_locked LOCK: LOCK is requirements.lock or requirements-dev.lock, which contains the former.
install_locked() {
    local lock=$1 python fingerprint stamp=$VENV/installed-$1 started=$SECONDS
    fingerprint=$(_fingerprint)
    if "$VENV/bin/python" -c '' 2>/dev/null && [ "$(cat "$stamp" 2>/dev/null)" = "$fingerprint" ]; then
        return
    fi
    python=$(find_python) || return 1
    ensure_venv_module "$python" || return 1
    echo "Installing $(grep -c '^[a-z].*==' "$CLONE/$lock") locked packages into $VENV (some minutes, once)"
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$VENV" || return 1
    rm -f "$VENV"/installed-*
    local pip=("$VENV/bin/python" -m pip --disable-pip-version-check --quiet install)
    "${pip[@]}" --require-hashes -r "$CLONE/$lock" || return 1
    "${pip[@]}" --no-deps --editable "$CLONE" || return 1
    echo "$fingerprint" >"$stamp"
    if [ "$lock" = requirements-dev.lock ]; then echo "$fingerprint" >"$VENV/installed-requirements.lock"; fi
    echo "Installed in $((SECONDS - started)) s"
}

# install_extra EXTRA: after install_locked, also what an extra of pyproject.toml asks for; locked packages stay as they are.
install_extra() {
    local extra=$1 fingerprint pins stamp=$VENV/installed-extra-$1
    fingerprint=$(_fingerprint)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$fingerprint" ]; then return; fi
    pins=$(mktemp)
    grep -E '^[a-z].*==' "$CLONE/requirements.lock" | sed 's/ \\$//' >"$pins"
    "$VENV/bin/python" -m pip --disable-pip-version-check --quiet install --constraint "$pins" --editable "${CLONE}[$extra]" ||
        return 1
    rm -f "$pins"
    echo "$fingerprint" >"$stamp"
}
