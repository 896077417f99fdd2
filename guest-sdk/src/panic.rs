//! A panic's text and place, on their way to the host.
//!
//! A panic ends the guest with `unreachable`, which says nothing. So the hook first writes one line to stderr:
//! `tm-panic: src/lib.rs:10:5: message`. The host takes the last captured line that begins with the marker.

use std::panic::PanicHookInfo;

/// What the line on stderr begins with.
pub const PANIC_MARKER: &str = "tm-panic: ";

/// The host bounds a message to 4 KiB; a longer line would only fill its capture.
const TEXT_MAX_BYTES: usize = 4096;

#[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "natively the test harness reports panics"))]
pub(crate) fn install_hook() {
    std::panic::set_hook(Box::new(|info| {
        use std::io::Write;
        // One write, and a line break first: the step may have left a line unfinished.
        let _ = std::io::stderr().write_all(format!("\n{}\n", describe(info)).as_bytes());
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let place = info.location().map_or_else(|| "unknown place".to_owned(), ToString::to_string);
    line(&place, info.payload_as_str().unwrap_or("a panic without text"))
}

/// One line whatever the text holds: control characters are escaped, a long text is cut.
fn line(place: &str, text: &str) -> String {
    let mut line = format!("{PANIC_MARKER}{place}: ");
    for c in text.chars() {
        if line.len() >= TEXT_MAX_BYTES {
            line.push('…');
            break;
        }
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_several_lines_stays_one_line() {
        assert_eq!(line("src/lib.rs:10:5", "left: 1\nright: 2"), "tm-panic: src/lib.rs:10:5: left: 1\\nright: 2");
    }

    #[test]
    fn a_long_text_is_cut() {
        let cut = line("src/lib.rs:1:1", &"é".repeat(5000));
        assert!(cut.len() <= TEXT_MAX_BYTES + 8 && cut.ends_with('…'), "{}", cut.len());
    }
}
