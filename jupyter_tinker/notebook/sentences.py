"""What happens to runs, in words: for terminals, for figures, and for magics."""

from __future__ import annotations

import json
from typing import Any

from ..wire.progress import in_words

_OVERRIDES = ("learning_rate", "grad_clip_norm", "weight_decay")


def words(event: dict[str, Any]) -> str:
    """What an event tells, without its time and its run."""
    kind, data, by = event["kind"], event["data"], _by(event)
    match kind:
        case "step":
            return _step(data)
        case "control_changed":
            return f"changed{by}: {_changes(data.get('before', {}), data.get('after', {}))}"
        case "resumed":
            return f"resumed{by}"
        case "rewound":
            return f"rewound to step {data.get('step')}{by}, now on branch {data.get('branch')}"
        case "guard":
            paused = "; the run is paused" if data.get("paused") else ""
            return f"guard {data.get('rule')}: {data.get('reason')}{paused}"
        case "run_revived":
            steps = "1 step" if data.get("replayed") == 1 else f"{data.get('replayed')} steps"
            return f"revived in {data.get('seconds', 0):.1f} s; {steps} made again"
        case "run_ended" if data.get("failed"):
            return f"could not be created: {data.get('error')}"
        case "request_failed":
            return f"{data.get('request')} number {data.get('seq_id')} failed: {data.get('error')}"
        case "lr_find_started":
            return f"a sweep over learning rates began on a copy{by}"
        case "lr_find_done":
            return f"the sweep over learning rates {_found(data)}"
        case "preview_changed":
            count = len(data.get("prompts", ()))
            every = data.get("every")
            often = "on request only" if every is None else f"every {every} steps"
            return f"previews{by}: {_prompts(count)}, {often}"
        case "preview_sampled":
            answered = sum(answer["error"] is None for answer in data.get("answers", ()))
            told = data.get("error") or f"{_prompts(answered)} answered"
            return f"preview{by}: {told}"
        case "progress":
            return in_words(data)
        case "run_unloaded":
            return "not in memory any more; it is brought back when it is needed"
    told = data.get("reason") or data.get("path") or (json.dumps(data) if data else "")
    return kind.replace("_", " ") + by + (f": {told}" if told else "")


def _found(data: dict[str, Any]) -> str:
    found = data.get("suggestion")
    if found:
        return f"suggests {found['learning_rate']:.2g}"
    ended = {"done": "is done", "cancelled": "was cancelled"}.get(data["status"], "failed")
    return ended if data["status"] == "cancelled" else f"{ended}: {data.get('message')}"


def _prompts(count: int) -> str:
    return "1 prompt" if count == 1 else f"{count} prompts"


def _by(event: dict[str, Any]) -> str:
    return f" by {event['actor']}" if event["actor"] else ""


def _changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    def value(name: str, value: Any) -> str:
        if value is None:
            return "as asked" if name in _OVERRIDES else "none"
        return json.dumps(value)

    return ", ".join(
        f"{name} {value(name, before.get(name))} -> {value(name, after[name])}" for name in after
    )


def _step(row: dict[str, Any]) -> str:
    words = [f"step {row['step']}"]
    if row.get("branch"):
        words[0] += f" of branch {row['branch']}"
    if row.get("loss_mean") is not None:
        words.append(f"loss {row['loss_mean']:.4f}")
    if row.get("grad_norm") is not None:
        words.append(f"gradient norm {row['grad_norm']:.3g}")
    rate, asked = row.get("learning_rate"), row.get("learning_rate_requested")
    if rate is not None:
        differs = asked is not None and asked != rate
        words.append(f"learning rate {rate:.3g}" + (f" (asked: {asked:.3g})" if differs else ""))
    if row.get("skipped"):
        words.append(f"skipped: {row['skipped']}")
    return ", ".join(words)
