"""The same as `langdc eval`; --help shows its arguments. Also: torchrun --nproc-per-node 2 eval/run.py CONFIG"""

from langdc.cli import door

main = door("eval")

if __name__ == "__main__":
    raise SystemExit(main())
