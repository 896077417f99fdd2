//! The pieces of HTML that every page or the site as a whole gets.

use tm_guest::prelude::*;

/// What this step takes from the output of `render`.
#[payload]
pub(crate) struct Page {
    pub(crate) html: String,
    pub(crate) title: String,
}

pub(crate) const STYLE: &str = include_str!("site.css");

/// Puts the navigation where the template asks for it.
pub(crate) fn fill(html: &str, navigation: &str) -> String {
    html.replacen("<!--navigation-->", navigation, 1)
}

/// Links to the contents and to the neighbours, relative to `page`.
pub(crate) fn navigation(page: &Page, contents: &str, before: Option<&Page>, after: Option<&Page>) -> String {
    let up = "../".repeat(page.html.matches('/').count());
    let link = |target: &str, text: &str| format!("<a href=\"{up}{}\">{}</a>", href(target), escape(text));
    let mut out = format!("<nav>{}", link(contents, "Contents"));
    if let Some(before) = before {
        out += &format!(" ← {}", link(&before.html, &before.title));
    }
    if let Some(after) = after {
        out += &format!(" → {}", link(&after.html, &after.title));
    }
    out + "</nav>"
}

/// The first page that a reader sees: a search field and all pages.
pub(crate) fn contents(pages: &[Page], broken: usize) -> String {
    let list: String = pages
        .iter()
        .map(|page| format!("<li><a href=\"{}\">{}</a></li>\n", href(&page.html), escape(&page.title)))
        .collect();
    let report = match broken {
        0 => "No broken links.".to_owned(),
        n => format!("<a href=\"broken-links.json\">{n} broken links</a>."),
    };
    let script = include_str!("search.js");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Contents</title>\n<link rel=\"stylesheet\" href=\"site.css\">\n</head>\n<body>\n<main>\n\
         <h1>Contents</h1>\n<input id=\"search\" type=\"search\" placeholder=\"Search\">\n\
         <ul id=\"pages\">\n{list}</ul>\n<p>{} pages. {report}</p>\n</main>\n\
         <script>\n{script}</script>\n</body>\n</html>\n",
        pages.len()
    )
}

/// Percent-encodes what a path may hold but a URL's path may not.
fn href(path: &str) -> String {
    path.bytes().fold(String::with_capacity(path.len()), |mut out, b| {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(b as char),
            b => out += &format!("%{b:02X}"),
        }
        out
    })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_and_paths_cannot_break_out_of_the_markup() {
        let page = Page { html: "a \"b\".html".into(), title: "<script>".into() };
        let html = contents(&[page], 0);
        assert!(html.contains("<a href=\"a%20%22b%22.html\">&lt;script&gt;</a>"), "{html}");
        assert!(html.contains("No broken links."));
    }
}
