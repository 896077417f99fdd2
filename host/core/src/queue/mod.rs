//! The queue: facts ([`event`]), what they add up to ([`state`], [`apply`]), and what follows from an input ([`decide`]).

pub mod apply;
pub mod attempts;
pub mod check;
pub mod deadlines;
pub mod decide;
pub mod effect;
pub mod event;
pub mod indexes;
pub mod lanes;
pub mod pages;
pub mod policy;
pub mod results;
pub mod run;
pub mod state;
pub mod view;

#[cfg(test)]
mod tests;
