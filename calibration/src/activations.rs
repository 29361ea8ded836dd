//! The running activations of all windows, in memory or in a memory-mapped temporary file.
