//! The attempt's log: standard output, standard error and `log.emit` in one bounded text.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tm_core::limits::ERROR_MESSAGE_MAX_BYTES;
use tokio::io::AsyncWrite;
use wasmtime_wasi::{
    async_trait,
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamError, StreamResult},
};

/// What the SDK's panic hook writes at the start of a line on stderr.
const PANIC_MARKER: &[u8] = b"tm-panic: ";
/// One permit of a stream; also bounds what a guest can make the host allocate for zeroes.
const PERMIT_BYTES: usize = 64 * 1024;

#[derive(Debug, Default)]
struct Inner {
    text: Vec<u8>,
    max_bytes: usize,
    cut: bool,
    /// The line that stderr is in, as far as it can still be a panic's.
    line: Vec<u8>,
    panic: Option<Vec<u8>>,
}

/// A cheap handle; streams of the guest hold it too. Never locked across an await.
#[derive(Clone, Debug, Default)]
pub struct Capture(Arc<Mutex<Inner>>);

impl Capture {
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner { max_bytes, ..Inner::default() })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One line of `log.emit`.
    pub fn emit(&self, level: &str, message: &str) {
        let mut inner = self.inner();
        if inner.text.last().is_some_and(|&last| last != b'\n') {
            inner.append(b"\n");
        }
        inner.append(level.as_bytes());
        inner.append(b": ");
        inner.append(message.as_bytes());
        inner.append(b"\n");
    }

    /// The text of the last panic that stderr told, without the marker.
    #[must_use]
    pub fn panic_text(&self) -> Option<String> {
        let inner = self.inner();
        let unfinished = inner.line.strip_prefix(PANIC_MARKER);
        unfinished.or(inner.panic.as_deref()).map(|text| String::from_utf8_lossy(text).into_owned())
    }

    /// The text, with a marker where it was cut.
    #[must_use]
    pub fn take(&self) -> String {
        let mut inner = self.inner();
        let mut text = String::from_utf8_lossy(&std::mem::take(&mut inner.text)).into_owned();
        if inner.cut {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(&cut_marker(inner.max_bytes));
        }
        text
    }
}

/// The last line of a cut log.
#[must_use]
pub fn cut_marker(max_bytes: usize) -> String {
    format!("[log cut at {} KiB]\n", max_bytes / 1024)
}

impl Inner {
    fn append(&mut self, bytes: &[u8]) {
        let room = self.max_bytes.saturating_sub(self.text.len());
        self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.cut |= bytes.len() > room;
    }

    /// Looks for the marker even when the log is full: an error needs it most then.
    fn watch(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let whole = part.ends_with(b"\n");
            let part = part.strip_suffix(b"\n").unwrap_or(part);
            let room = ERROR_MESSAGE_MAX_BYTES.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if whole {
                if let Some(text) = self.line.strip_prefix(PANIC_MARKER) {
                    self.panic = Some(text.to_vec());
                }
                self.line.clear();
            }
        }
    }
}

/// The guest's standard output or standard error.
#[derive(Clone)]
pub struct Standard {
    pub capture: Capture,
    pub error: bool,
}

impl IsTerminal for Standard {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Standard {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // Only preview 3 takes this one, and no preview 3 interface is linked.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Standard {
    async fn ready(&mut self) {}
}

#[async_trait]
impl OutputStream for Standard {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut inner = self.capture.inner();
        inner.append(&bytes);
        if self.error {
            inner.watch(&bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> Result<usize, StreamError> {
        Ok(PERMIT_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stderr(capture: &Capture) -> Standard {
        Standard { capture: capture.clone(), error: true }
    }

    #[test]
    fn a_flood_is_cut_with_a_marker_and_a_later_panic_is_still_found() {
        let capture = Capture::new(1024);
        for _ in 0..100 {
            stderr(&capture).write(Bytes::from_static(&[b'x'; 100])).unwrap();
        }
        stderr(&capture).write(Bytes::from_static(b"\ntm-pan")).unwrap();
        stderr(&capture).write(Bytes::from_static(b"ic: src/lib.rs:1:2: no\n")).unwrap();
        assert_eq!(capture.panic_text().as_deref(), Some("src/lib.rs:1:2: no"));
        let text = capture.take();
        assert!(text.ends_with("x\n[log cut at 1 KiB]\n"), "{text}");
        assert_eq!(text.len(), 1024 + 1 + cut_marker(1024).len());
    }

    #[test]
    fn a_log_line_starts_on_a_line_of_its_own() {
        let capture = Capture::new(1024);
        Standard { capture: capture.clone(), error: false }.write(Bytes::from_static(b"half")).unwrap();
        capture.emit("info", "whole");
        assert_eq!(capture.take(), "half\ninfo: whole\n");
    }
}
