//! Policies of destinations: [`policies`] answers, [`dane`] and [`sts`] look up and keep what was published, [`decision`]
//! combines the two, [`history`] remembers which policy was in force when, [`admin`] shows it to people.

pub mod admin;
pub mod compress;
pub mod dane;
mod decide;
pub mod decision;
pub mod decision_cache;
mod held_to;
pub mod history;
mod not_asked;
pub mod overrides;
pub mod policies;
pub mod single_flight;
pub mod sts;
pub mod throttle;
