//! Where a link leads, by its text and the page that it stands on alone.

#[derive(Debug, PartialEq)]
pub(crate) enum Target {
    /// Another scheme or host.
    External,
    /// Above the folder of the pages.
    Outside,
    /// `path` is relative to the folder, without `.` and `..`; empty for the folder itself.
    Inside { path: String, anchor: Option<String> },
}

impl Target {
    /// Follows `link` from the page at `from`. A leading `/` means the folder of the pages.
    pub(crate) fn of(link: &str, from: &str) -> Target {
        if link.starts_with("//") || has_scheme(link) {
            return Target::External;
        }
        let (rest, anchor) = match link.split_once('#') {
            Some((rest, anchor)) => (rest, Some(decode(anchor))),
            None => (link, None),
        };
        let file = decode(rest.split_once('?').map_or(rest, |(file, _)| file));
        if file.is_empty() {
            return Target::Inside { path: from.to_owned(), anchor };
        }
        let folder = from.rsplit_once('/').map_or("", |(folder, _)| folder);
        let base = if file.starts_with('/') { "" } else { folder };
        let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
        for part in file.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    if parts.pop().is_none() {
                        return Target::Outside;
                    }
                }
                part => parts.push(part),
            }
        }
        Target::Inside { path: parts.join("/"), anchor }
    }
}

/// `mailto:`, `https:`: a letter, then letters, digits, `+`, `-`, `.`, then a colon (RFC 3986, 3.1).
fn has_scheme(link: &str) -> bool {
    let Some((scheme, _)) = link.split_once(':') else { return false };
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// Undoes percent-encoding; what is not valid stays as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%').and_then(|h| u8::from_str_radix(h, 16).ok());
        match hex {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(path: &str, anchor: Option<&str>) -> Target {
        Target::Inside { path: path.to_owned(), anchor: anchor.map(str::to_owned) }
    }

    #[test]
    fn relative_links_start_at_the_page_and_absolute_ones_at_the_folder() {
        assert_eq!(Target::of("c.md#x", "a/b.md"), inside("a/c.md", Some("x")));
        assert_eq!(Target::of("../c.md", "a/b.md"), inside("c.md", None));
        assert_eq!(Target::of("/c.md", "a/b.md"), inside("c.md", None));
        assert_eq!(Target::of("#x", "a/b.md"), inside("a/b.md", Some("x")));
    }

    #[test]
    fn a_link_above_the_folder_is_outside_even_when_it_comes_back() {
        assert_eq!(Target::of("../x.md", "a.md"), Target::Outside);
        assert_eq!(Target::of("../docs/a.md", "a.md"), Target::Outside);
    }

    #[test]
    fn only_a_scheme_makes_a_link_external() {
        assert_eq!(Target::of("mailto:a@example.org", "a.md"), Target::External);
        assert_eq!(Target::of("notes/10:30.md", "a.md"), inside("notes/10:30.md", None));
    }

    #[test]
    fn bad_percent_encoding_stays() {
        assert_eq!(decode("100%"), "100%");
        assert_eq!(decode("%zz%20é%C3%A9"), "%zz éé");
        assert_eq!(decode("%ff"), "%ff");
    }
}
