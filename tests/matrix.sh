#!/usr/bin/env bash
# Run the tests under other MindSpore versions, each in an environment of its own.
# usage: tests/matrix.sh 2.7.2 2.8.0 2.10.0
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
failed=0
for version in "$@"; do
    venv=.venv-$version
    if [ ! "$venv/.installed" -nt requirements/cpu.txt ]; then
        .venv/bin/python -m venv "$venv"
        # The lock without hashes, and with the MindSpore under test in place of the pinned one.
        sed -E 's/ \\$//; /^ +--hash/d; s/^mindspore==.*/mindspore=='"$version"'/' requirements/cpu.txt > "$venv/requirements.txt"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$venv/requirements.txt" || { failed=1; continue; }
        touch "$venv/.installed"
    fi
    echo "== MindSpore $version"
    "$venv/bin/python" -m pytest || failed=1
done
exit $failed
