"""``python -m benchmarks [case ...]``"""

from benchmarks.program import main

raise SystemExit(main())
