//! Small random models on disk, and the slow decoder they are held against.

pub(crate) mod reference;
pub(crate) mod small_model;
