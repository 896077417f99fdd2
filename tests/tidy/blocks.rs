//! The generated parts of the reference pages: from `<!-- begin: NAME -->` to `<!-- end -->`.

use std::{collections::BTreeSet, fmt::Write as _, fs};

use tm_core::{
    backoff::RetryPolicy,
    code::{Class, TABLE},
    flow::validate::LIMITS_MAX,
    limits::Limits,
};

use crate::source::root;

const BEGIN: &str = "<!-- begin: ";
const END: &str = "<!-- end -->";

/// The page with its generated parts as the code has them now.
///
/// # Panics
/// When a part has no end or an unknown name.
pub(crate) fn renew(page: &str, name: &str) -> String {
    let mut fresh = String::with_capacity(page.len());
    let mut rest = page;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let (block, after) = after.split_once(" -->\n").unwrap_or_else(|| panic!("{name}: a begin without a name"));
        let (_, after) = after.split_once(END).unwrap_or_else(|| panic!("{name}: {block} has no end"));
        let _ = write!(fresh, "{before}{BEGIN}{block} -->\n{}{END}", content(block, name));
        rest = after;
    }
    fresh + rest
}

fn content(block: &str, page: &str) -> String {
    match block.split_once(' ').unwrap_or((block, "")) {
        ("codes", _) => codes(),
        ("limits", _) => limits(),
        ("retries", _) => retries(),
        ("events", _) => events(),
        ("keys", name) => keys("host/core/src/flow/spec.rs", name),
        _ => panic!("{page}: nothing generates '{block}'"),
    }
}

fn codes() -> String {
    let mut table = String::from("| code | next | meaning |\n|---|---|---|\n");
    for (code, class, about) in TABLE {
        let next = match class {
            Class::Retryable => "tried again with backoff",
            Class::RateLimited => "tried again later; not a failure",
            Class::InvalidInput | Class::Fatal => "dead-lettered or refused at once",
        };
        let _ = writeln!(table, "| `{code}` | {next} | {about} |");
    }
    table
}

fn limits() -> String {
    let rows = |limits: &Limits| {
        [
            ("fuel", limits.fuel),
            ("memory_mb", limits.memory_mb.into()),
            ("timeout_ms", limits.timeout_ms),
            ("stack_kb", limits.stack_kb.into()),
            ("output_kb", limits.output_kb.into()),
            ("log_kb", limits.log_kb.into()),
            ("scratch_mb", limits.scratch_mb.into()),
            ("artifacts_mb", limits.artifacts_mb.into()),
        ]
    };
    let about = fields("host/core/src/limits.rs", "pub struct Limits {");
    let mut table = String::from(
        "| key | default | ceiling without `[tenants]` | most that any configuration allows | meaning |\n|---|---|---|---|---|\n",
    );
    let (defaults, ceilings, most) = (rows(&Limits::DEFAULT), rows(&Limits::CEILING), rows(&LIMITS_MAX));
    for (((key, default), (_, ceiling)), (_, most)) in defaults.into_iter().zip(ceilings).zip(most) {
        let about = about.iter().find(|field| field.name == key).map_or("", |field| &field.about);
        let _ = writeln!(table, "| `{key}` | {default} | {ceiling} | {most} | {about} |");
    }
    table
}

fn retries() -> String {
    let policy = RetryPolicy::default();
    let factor = policy.factor_thousandths as f64 / 1000.0;
    let mut table = String::from("| key | default |\n|---|---|\n");
    for (key, value) in [
        ("max_attempts", policy.max_attempts.to_string()),
        ("base_ms", policy.base_ms.to_string()),
        ("factor", format!("{factor:.1}")),
        ("jitter_ms", policy.jitter_ms.to_string()),
        ("max_delay_ms", policy.max_delay_ms.to_string()),
    ] {
        let _ = writeln!(table, "| `{key}` | {value} |");
    }
    table
}

/// The keys of a struct of the flow file.
fn keys(file: &str, name: &str) -> String {
    let mut table = String::from("| key | value | meaning |\n|---|---|---|\n");
    for field in fields(file, &format!("pub struct {name} {{")) {
        let _ = writeln!(table, "| `{}` | {} | {} |", field.name, kind(&field.kind), field.about);
    }
    table
}

fn kind(of: &str) -> String {
    if let Some(inner) = of.strip_prefix("Option<").and_then(|inner| inner.strip_suffix('>')) {
        return format!("{}, optional", kind(inner));
    }
    if let Some(inner) = of.strip_prefix("Vec<").and_then(|inner| inner.strip_suffix('>')) {
        return format!("list of {}", kind(inner));
    }
    let plain = match of {
        "String" => "text",
        "bool" => "`true` or `false`",
        "u32" | "u64" => "whole number",
        "f64" => "number",
        "serde_json::Value" => "any value",
        "Mode" => "`read` or `write`",
        "EnvSource" => "`caller` or `host`",
        "StepSpec" => "steps",
        "FilesSpec" => "folders",
        "EnvSpec" => "variables",
        "LimitsSpec" | "RetriesSpec" | "GrantsSpec" => "table, see below",
        other => other,
    };
    plain.to_owned()
}

fn events() -> String {
    const FILE: &str = "host/core/src/queue/event.rs";
    let text = fs::read_to_string(root().join(FILE)).unwrap();
    let body = text.split_once("pub enum Event {\n").and_then(|(_, rest)| rest.split_once("\n}")).unwrap().0;
    let mut table = String::from("| event | fields | meaning |\n|---|---|---|\n");
    let (mut about, mut lines) = (String::new(), body.lines());
    while let Some(line) = lines.next() {
        let line = line.trim();
        if let Some(doc) = line.strip_prefix("///") {
            about = join(&about, doc);
        } else if let Some(name) = line.strip_suffix(" {") {
            let inside: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "},").collect();
            row(&mut table, name, &parse(&inside.join("\n")), &about);
            about.clear();
        } else if let Some((name, of)) = line.split_once('(') {
            let of = of.trim_end_matches([')', ',', '>']).trim_start_matches("Box<");
            let head = format!("pub struct {of} {{");
            let inner = if text.contains(&head) { fields(FILE, &head) } else { Vec::new() };
            row(&mut table, name, &inner, &about);
            about.clear();
        }
    }
    table
}

fn row(table: &mut String, event: &str, fields: &[Field], about: &str) {
    let fields: Vec<String> = fields
        .iter()
        .map(|field| match &field.renamed {
            Some(short) => format!("`{short}` ({})", field.name),
            None => format!("`{}`", field.name),
        })
        .collect();
    let fields = if fields.is_empty() { "the whole of it".to_owned() } else { fields.join(", ") };
    let _ = writeln!(table, "| `{event}` | {fields} | {about} |");
}

struct Field {
    name: String,
    kind: String,
    renamed: Option<String>,
    about: String,
}

/// The fields of a struct with their comments, from its text.
fn fields(file: &str, head: &str) -> Vec<Field> {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let (_, rest) = text.split_once(head).unwrap_or_else(|| panic!("{file} has no '{head}'"));
    parse(rest.split_once("\n}").unwrap_or((rest, "")).0)
}

fn parse(body: &str) -> Vec<Field> {
    let (mut found, mut about, mut renamed) = (Vec::new(), String::new(), None);
    for line in body.lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("///") {
            about = join(&about, doc);
        } else if line.starts_with("#[") {
            let name = line.split_once("rename = \"").and_then(|(_, rest)| rest.split_once('"'));
            renamed = name.map(|(name, _)| name.to_owned()).or(renamed);
        } else if let Some((name, kind)) = line.trim_start_matches("pub ").split_once(": ") {
            found.push(Field {
                name: name.to_owned(),
                kind: kind.trim_end_matches(',').to_owned(),
                renamed: renamed.take(),
                about: std::mem::take(&mut about),
            });
        }
    }
    found
}

/// Comment lines as one line of a table, without the brackets of links between items.
fn join(before: &str, line: &str) -> String {
    let line = line.trim().replace("[`", "`").replace("`]", "`").replace("crate::", "").replace('|', "\\|");
    if before.is_empty() { line } else { format!("{before} {line}") }
}

/// All keys of the configuration as `table.key`, from the structs that read it.
pub(crate) fn configuration_keys() -> BTreeSet<String> {
    const FILE: &str = "host/supervisor/src/config/written.rs";
    let own = |name: &str| fields(FILE, &format!("\nstruct {name} {{"));
    let mut keys = BTreeSet::new();
    let mut add = |table: &str, fields: Vec<Field>| {
        keys.extend(fields.into_iter().map(|field| format!("{table}.{}", field.name)));
    };
    for (table, name) in [
        ("queue", "Queue"),
        ("workers", "Workers"),
        ("idempotency", "Idempotency"),
        ("backpressure", "Pressure"),
        ("scratch", "Scratch"),
        ("retention", "Retention"),
        ("tenants.T.allow", "Allow"),
    ] {
        add(table, own(name));
    }
    add("retries.default", fields("host/core/src/flow/spec.rs", "pub struct RetriesSpec {"));
    add("tenants.T", own("Tenant").into_iter().filter(|field| field.name != "allow").collect());
    keys
}

/// The key that a row of a table begins with.
pub(crate) fn first_cell(line: &str) -> Option<String> {
    let cell = line.strip_prefix("| `")?.split_once("` |")?.0;
    Some(cell.to_owned())
}
