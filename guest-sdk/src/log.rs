//! Lines for the people who run the flow. The host bounds them by `log_kb` and cuts with a marker. Needs no grant.

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

pub fn emit(level: Level, message: impl AsRef<str>) {
    crate::backend::emit(level, message.as_ref());
}

pub fn trace(message: impl AsRef<str>) {
    emit(Level::Trace, message);
}

pub fn debug(message: impl AsRef<str>) {
    emit(Level::Debug, message);
}

pub fn info(message: impl AsRef<str>) {
    emit(Level::Info, message);
}

pub fn warn(message: impl AsRef<str>) {
    emit(Level::Warn, message);
}

pub fn error(message: impl AsRef<str>) {
    emit(Level::Error, message);
}
