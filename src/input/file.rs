//! Follows one log file over rotation and truncation.
