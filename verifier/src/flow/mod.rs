//! What the service does, without HTTP: each module is one exchange of the protocol (SPEC 7).

pub(crate) mod admin;
pub(crate) mod challenge;
pub(crate) mod enroll;
pub(crate) mod permit;
pub(crate) mod release;
mod seal;
