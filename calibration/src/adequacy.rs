//! Whether a calibration set is enough for a model: tokens against input width per module, rank, dead and near-dead
//! columns.
