#!/usr/bin/env bash
# Makes tests/golden/lm-eval-<version>: what two versions of lm-eval leave of the demo's tasks, each
# from an environment of its own, with lm-eval's dummy model, whose answers are random numbers.
# What tells of the machine is taken out. Usage: tests/golden/lm-eval.sh PLACE_FOR_ENVIRONMENTS
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
place="$(mkdir -p "$1" && cd "$1" && pwd)"

make_one() { # version, command, requirements...
    local version="$1" command="$2" python="$place/$1/bin/python"
    shift 2
    [ -x "$place/$version/bin/lm_eval" ] || { python3 -m venv "$place/$version" && "$python" -m pip install -q "$@"; }
    rm -rf "$place/out-$version" "$here/lm-eval-$version"
    cd "$here/../../evalkit/inputs/models/builtin/demo/tasks"
    HF_HOME="$place/cache-$version" HF_HUB_OFFLINE=1 "$place/$version/bin/lm_eval" $command \
        --model dummy --tasks demo_letters,demo_endings,demo_qa,demo_cot --include_path . \
        --limit 4 --log_samples --output_path "$place/out-$version"
    cp -r "$(dirname "$(find "$place/out-$version" -name 'results_*.json')")" "$here/lm-eval-$version"
    python3 - "$here/lm-eval-$version" <<'PY'
import json, pathlib, sys
(path,) = pathlib.Path(sys.argv[1]).glob("results_*.json")
body = json.loads(path.read_text())
body |= {"pretty_env_info": "", "git_hash": "", "model_name": "dummy", "model_name_sanitized": "dummy"}
path.write_text(json.dumps(body, indent=2))
PY
}

make_one 0.4.5 "" "lm-eval==0.4.5" "transformers<4.47" "datasets<3.2" "numpy<2" "pyarrow<18" torch
make_one 0.4.13 run "lm-eval==0.4.13" "transformers>=5" torch
