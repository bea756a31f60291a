//! Checkpoints with memory, as a model has it.
