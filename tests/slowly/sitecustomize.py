"""First on an engine's path: a small model takes as long to load as a large one."""

import sys

if "jupyter_tinker.engine.kernel" in sys.orig_argv:
    import time

    from jupyter_tinker.engine import loading

    _update = loading._Bar.update

    def _slowly(bar: loading._Bar, count: int = 1) -> None:
        time.sleep(0.3)
        _update(bar, count)

    loading._Bar.update = _slowly
