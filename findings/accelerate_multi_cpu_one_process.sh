#!/usr/bin/env bash
# accelerate: a configuration of MULTI_CPU with num_processes 2 starts one process, without a word.
#
# Seen with accelerate 1.15.0, torch 2.13.0 on the CPU (CPython 3.11, Linux). `accelerate launch` reads a configuration
# with distributed_type MULTI_CPU and num_processes 2, prints nothing, exits with 0, and the script runs once, as one
# process of type NO: by its source the launcher turns to mpirun only where mpirun_hostfile is set. Expected: two
# processes, or an error. A batch size reckoned for two is then half. The same script under torchrun has two processes of
# type MULTI_CPU: start it so, and compare Accelerator().num_processes with what was asked. torch needs no CUDA.
set -euo pipefail
place="$(mktemp -d)"; trap 'rm -rf "$place"' EXIT; cd "$place"
export HF_HOME="$place/hf" CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
python3 -m venv venv && . venv/bin/activate
pip install --quiet accelerate==1.15.0 torch==2.13.0 numpy==2.4.6
cat >config.yaml <<'YAML'
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
num_machines: 1
machine_rank: 0
num_processes: 2
use_cpu: true
mixed_precision: 'no'
YAML
cat >count.py <<'PY'
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
state = accelerator.state
print(f"process {state.process_index} of {state.num_processes}, {state.distributed_type.value}\n", end="", flush=True)
accelerator.wait_for_everyone()
if state.num_processes > 1:
    import torch.distributed
    torch.distributed.destroy_process_group()
PY
launch=0; timeout 120 accelerate launch --config_file config.yaml count.py >launch.out 2>launch.err || launch=$?
control=0; timeout 120 torchrun --standalone --nproc_per_node 2 count.py >torchrun.out 2>torchrun.err || control=$?
python - "$launch" "$control" <<'PY'
import sys
from pathlib import Path
lines = {name: sorted(Path(name).read_text().splitlines()) for name in ("launch.out", "launch.err", "torchrun.out")}
print("exit statuses of accelerate launch, torchrun:", sys.argv[1:])
print("accelerate launch:", lines["launch.out"], "stderr:", lines["launch.err"])
print("torchrun:", lines["torchrun.out"])
expected = sys.argv[1:] == ["0", "0"] and lines == {
    "launch.out": ["process 0 of 1, NO"], "launch.err": [],
    "torchrun.out": ["process 0 of 2, MULTI_CPU", "process 1 of 2, MULTI_CPU"]}
if sys.argv[2] != "0":
    print("torchrun's stderr:", Path("torchrun.err").read_text())
print("as described" if expected else "CHANGED")
sys.exit(not expected)
PY
