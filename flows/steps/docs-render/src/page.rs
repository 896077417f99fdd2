//! Markdown text to an HTML page, without files: title, headings with their anchors, links, words.

use std::collections::{BTreeMap, BTreeSet};

use pulldown_cmark::{CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};
use tm_guest::prelude::*;

/// A heading's text is cut here for the later steps; its anchor is made of the whole text.
const HEADING_MAX_CHARS: usize = 200;

#[payload]
#[derive(Debug, PartialEq)]
pub(crate) struct Heading {
    pub(crate) level: u8,
    pub(crate) text: String,
    pub(crate) anchor: String,
}

pub(crate) struct Page {
    pub(crate) html: String,
    pub(crate) title: String,
    pub(crate) links: Vec<String>,
    pub(crate) headings: Vec<Heading>,
    pub(crate) anchors: Vec<String>,
    pub(crate) words: usize,
}

/// Renders the page at `path` (relative to the site's root, for the title and the way to the style sheet).
pub(crate) fn render(markdown: &str, path: &str) -> Page {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_GFM;
    let mut events: Vec<Event<'_>> = Parser::new_ext(markdown, options).collect();
    let headings = name_headings(&mut events);
    let (mut links, mut anchors, mut words) = (BTreeSet::new(), BTreeSet::new(), 0);
    for event in &mut events {
        match event {
            Event::Start(Tag::Link { dest_url, .. }) => {
                links.insert(dest_url.to_string());
                *dest_url = html_target(dest_url);
            }
            Event::Start(Tag::Image { dest_url, .. }) => {
                links.insert(dest_url.to_string());
            }
            Event::Html(raw) | Event::InlineHtml(raw) => anchors.extend(raw_anchors(raw)),
            Event::Text(text) | Event::Code(text) => words += text.split_whitespace().count(),
            _ => {}
        }
    }
    let title = headings.first().map_or_else(|| path.trim_end_matches(".md").to_owned(), |h| h.text.clone());
    let mut body = String::with_capacity(markdown.len() * 3 / 2);
    html::push_html(&mut body, events.into_iter());
    Page {
        html: frame(&title, &body, path.matches('/').count()),
        title,
        links: links.into_iter().collect(),
        headings,
        anchors: anchors.into_iter().collect(),
        words,
    }
}

/// Gives every heading an anchor, the same that code forges give it, and lists them.
fn name_headings(events: &mut [Event<'_>]) -> Vec<Heading> {
    let mut headings = Vec::new();
    let mut taken = BTreeMap::new();
    for at in 0..events.len() {
        let Event::Start(Tag::Heading { level, .. }) = &events[at] else { continue };
        let level = *level;
        let text = plain_text(&events[at + 1..]);
        let anchor = unique(slug(&text), &mut taken);
        if let Event::Start(Tag::Heading { id, .. }) = &mut events[at] {
            *id = Some(CowStr::from(anchor.clone()));
        }
        let text = text.chars().take(HEADING_MAX_CHARS).collect();
        headings.push(Heading { level: number(level), text, anchor });
    }
    headings
}

fn number(level: HeadingLevel) -> u8 {
    level as u8
}

fn plain_text(events: &[Event<'_>]) -> String {
    let inside = events.iter().take_while(|event| !matches!(event, Event::End(TagEnd::Heading(_))));
    inside.fold(String::new(), |mut text, event| {
        match event {
            Event::Text(piece) | Event::Code(piece) => text.push_str(piece),
            Event::SoftBreak | Event::HardBreak => text.push(' '),
            _ => {}
        }
        text
    })
}

/// Lower case, spaces to hyphens, everything but letters, digits, hyphens and underscores dropped.
fn slug(text: &str) -> String {
    let kept = text.trim().chars().flat_map(char::to_lowercase);
    kept.filter_map(|c| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
        _ => None,
    })
    .collect()
}

/// The second `usage` of a page is `usage-1`, the third `usage-2`.
fn unique(slug: String, taken: &mut BTreeMap<String, usize>) -> String {
    if !taken.contains_key(&slug) {
        taken.insert(slug.clone(), 0);
        return slug;
    }
    let mut count = taken[&slug];
    loop {
        count += 1;
        let candidate = format!("{slug}-{count}");
        if !taken.contains_key(&candidate) {
            taken.insert(slug, count);
            taken.insert(candidate.clone(), 0);
            return candidate;
        }
    }
}

/// A link to another page leads to its HTML; all other targets stay.
fn html_target<'a>(target: &str) -> CowStr<'a> {
    let cut = target.find(['#', '?']).unwrap_or(target.len());
    let (file, rest) = target.split_at(cut);
    let first_part = file.split('/').next().unwrap_or(file);
    let external = first_part.contains(':') || file.starts_with("//");
    match file.strip_suffix(".md") {
        Some(stem) if !external => format!("{stem}.html{rest}").into(),
        _ => target.to_owned().into(),
    }
}

/// The values of `id="…"` and `name="…"` in raw HTML.
fn raw_anchors(raw: &str) -> Vec<String> {
    let mut found = Vec::new();
    for attribute in ["id=", "name="] {
        for (at, _) in raw.match_indices(attribute) {
            let before = raw[..at].chars().next_back();
            let value = &raw[at + attribute.len()..];
            let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
            if let (Some(before), Some(quote)) = (before, quote)
                && before.is_whitespace()
                && let Some((value, _)) = value[1..].split_once(quote)
            {
                found.push(value.to_owned());
            }
        }
    }
    found
}

/// The page around the body. `<!--navigation-->` is filled by the last step, which knows all pages.
fn frame(title: &str, body: &str, depth: usize) -> String {
    let (title, up) = (escape(title), "../".repeat(depth));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<link rel=\"stylesheet\" href=\"{up}site.css\">\n</head>\n<body>\n\
         <!--navigation-->\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_its_title_links_headings_and_words() {
        let page =
            render("# The *first* `code`\n\nSee [two](b/two.md#use), ![pic](p.png).\n\n## Use & abuse\n", "a.md");
        assert_eq!(page.title, "The first code");
        assert_eq!(page.links, ["b/two.md#use", "p.png"]);
        assert_eq!(page.headings[1], Heading { level: 2, text: "Use & abuse".into(), anchor: "use--abuse".into() });
        assert!(page.html.contains("<h2 id=\"use--abuse\">Use &amp; abuse</h2>"), "{}", page.html);
        assert!(page.html.contains("href=\"b/two.html#use\""), "{}", page.html);
        assert!(page.words >= 7, "{}", page.words);
    }

    #[test]
    fn equal_headings_get_different_anchors() {
        let page = render("# Use\n# Use\n# Use-1\n# Use\n", "a.md");
        let anchors: Vec<_> = page.headings.iter().map(|h| h.anchor.as_str()).collect();
        assert_eq!(anchors, ["use", "use-1", "use-1-1", "use-2"]);
    }

    #[test]
    fn an_anchor_in_raw_html_is_found() {
        assert_eq!(render("<a id=\"here\"></a>\n\ntext <a name='there'></a>\n", "a.md").anchors, ["here", "there"]);
        assert!(render("<a data-id=\"no\"></a>\n", "a.md").anchors.is_empty());
    }

    #[test]
    fn a_page_without_a_heading_is_titled_by_its_path() {
        let page = render("just text", "guide/<a>.md");
        assert_eq!(page.title, "guide/<a>");
        assert!(page.html.contains("<title>guide/&lt;a&gt;</title>"));
        assert!(page.html.contains("href=\"../site.css\""));
    }

    #[test]
    fn links_to_other_places_stay_as_they_are() {
        for target in ["https://example.org/a.md", "//example.org/a.md", "#top", "a.txt", "mailto:a@example.org"] {
            assert_eq!(&*html_target(target), target);
        }
        assert_eq!(&*html_target("../a.md?x#y"), "../a.html?x#y");
    }
}
