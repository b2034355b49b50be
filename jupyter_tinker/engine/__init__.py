"""The LoRA engine, inside its own kernel process: the only folder that imports torch."""
