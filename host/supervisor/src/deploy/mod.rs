//! From a flow's text to a registered flow: read, checked, its folders and components resolved, its requests held against
//! the operator's ceiling. Every fault that can be found is found in one pass, each with its line and column.

pub mod capabilities;
pub mod component;
mod form;
pub mod known;
mod opened;
pub mod resolve;
pub mod text;
mod tree;

pub use component::{Missing, artifact_of};
pub use known::{Inspect, InspectError, KnownFiles};
pub use opened::{Opened, open_regular, text_of};
pub use resolve::{Resolved, Source, resolve};
pub use text::{DeployError, FlowFault, FlowText};
