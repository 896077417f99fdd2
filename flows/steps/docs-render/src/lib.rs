//! Renders one Markdown page to HTML, and tells the later steps what they need to know about it.
//!
//! The HTML is an artefact named like the page with `.html`; the output stays small, since the outputs of all pages
//! together are the input of the steps that follow.

mod page;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use tm_guest::prelude::*;

use page::Heading;

/// Where the flow mounts the folder.
const ROOT: &str = "/docs";
const PAGE_MAX_BYTES: u64 = 4 * 1024 * 1024;

#[payload]
struct In {
    /// Relative to the folder, ends in `.md`.
    path: String,
}

#[payload]
struct Out {
    path: String,
    /// The name of the artefact.
    html: String,
    title: String,
    /// The targets of links and images as they are written, each once.
    links: Vec<String>,
    headings: Vec<Heading>,
    /// Ids that raw HTML in the page defines.
    anchors: Vec<String>,
    words: usize,
}

#[step]
fn render(_ctx: &Context, Json(input): Json<In>) -> Result<Json<Out>, StepError> {
    let Some(stem) = input.path.strip_suffix(".md") else {
        return Err(StepError::invalid_input("NOT_A_PAGE", format!("{}: does not end in .md", input.path)));
    };
    let html = format!("{stem}.html");
    let text = read(&Path::new(ROOT).join(&input.path))?;
    let page = page::render(&text, &input.path);
    artifacts::write(&html, &page.html)?;
    Ok(Json(Out {
        path: input.path,
        html,
        title: page.title,
        links: page.links,
        headings: page.headings,
        anchors: page.anchors,
        words: page.words,
    }))
}

fn read(path: &Path) -> Result<String, StepError> {
    let failed = |why: std::io::Error| StepError::retryable("PAGE_UNREADABLE", format!("{}: {why}", path.display()));
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(PAGE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > PAGE_MAX_BYTES {
        let why = format!("{}: over {PAGE_MAX_BYTES} bytes", path.display());
        return Err(StepError::invalid_input("PAGE_TOO_LARGE", why));
    }
    Ok(String::from_utf8(bytes).unwrap_or_else(|bad| {
        log::warn(format!("{}: not UTF-8, shown with replacement characters", path.display()));
        String::from_utf8_lossy(bad.as_bytes()).into_owned()
    }))
}
