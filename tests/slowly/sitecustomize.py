"""First on an engine's path: a small model takes as long as a large one to load, step and keep."""

import sys

if "jupyter_tinker.engine.kernel" in sys.orig_argv:
    import time
    from typing import Any

    from jupyter_tinker.engine import loading, snapshot, train

    def _slow(owner: Any, name: str, seconds: float) -> None:
        quick = getattr(owner, name)

        def slowly(*args: Any, **kwargs: Any) -> Any:
            time.sleep(seconds)
            return quick(*args, **kwargs)

        setattr(owner, name, slowly)

    _slow(loading._Bar, "update", 0.3)
    _slow(train, "optim_step", 0.03)  # a replay lasts
    _slow(snapshot, "write", 1.0)  # so costly that a second is not due for long
