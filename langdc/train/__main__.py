"""python -m langdc.train: as `langdc train`."""

from langdc.train.run import main

raise SystemExit(main())
