//! The reader of flows: any text to its faults, each at a place in it, or to a definition that its canonical form gives too.

use std::{fs::File, os::fd::BorrowedFd, path::Path, time::Duration};

use tm_core::{
    flow::spec::{FlowFile, FlowSpec},
    id::Digest,
    limits::STEPS_PER_FLOW_MAX,
    wire::{Inspection, Required},
};
use tm_supervisor::{
    config::Settings,
    deploy::{DeployError, FlowFault, FlowText, Inspect, InspectError, KnownFiles, Resolved, Source, resolve},
    evaluate::MiniJinja,
    workers::sealed,
};

use crate::{Target, Verdict, measure::within};

pub const TARGET: Target = Target { name: "flow", run, words: WORDS, mend: None, len_max: 32 * 1024 };

const WORDS: &[&str] = &[
    "\n    - id: b\n      component: b.wasm\n",
    "      needs: [a]\n",
    "      when: input.go\n",
    "      for_each: steps.a.output\n",
    "      max_parallel: 2\n",
    "      input: { a: '{{ input }}' }\n",
    "      limits: { fuel: 5 }\n",
    "      retries: { factor: 2.5 }\n",
    "      grants: { env: [ { name: A, from: caller } ], files: [ { host: ., guest: /a, mode: write } ] }\n",
    "&a ",
    "*a",
    "<<: ",
    "!!binary ",
    "---\n",
    "...\n",
    "|\n",
    ">-\n",
    "? ",
    "{{ ",
    " }}",
    "\t",
    "\r",
    "\u{2028}",
    "\u{85}",
    "\u{feff}",
    "# ",
    ".nan",
    ".inf",
    "~",
    "'",
    "\"",
];
/// No file, but its folder is one: folders of flows stand relative to it.
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/f.yaml");
const BYTES: usize = 16 * 1024 * 1024;
const BYTES_PER_BYTE: usize = 1024;
const TIME_MAX: Duration = Duration::from_secs(5);

fn run(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    let evaluate = MiniJinja::new();
    let read = within("reading a flow", BYTES + BYTES_PER_BYTE * bytes.len(), TIME_MAX, || {
        FlowText::read(text, Path::new(PATH), &evaluate)
    });
    let flow = match read {
        Ok(flow) => flow,
        Err(error) => {
            assert!(!error.faults.is_empty());
            error.faults.iter().for_each(|fault| stands_in(text, fault));
            let _shown = error.to_api();
            return Verdict::Refused;
        }
    };
    assert!((1..=STEPS_PER_FLOW_MAX).contains(&flow.spec.steps.len()));
    let canonical = canonical(&flow.spec);
    let again = FlowText::read(&canonical, Path::new(PATH), &evaluate)
        .unwrap_or_else(|error| panic!("the canonical form has faults: {error}\n{canonical}"));
    assert_eq!(self::canonical(&again.spec), canonical);
    match (registered(text, &flow), registered(&canonical, &again)) {
        (Ok(one), Ok(other)) => assert_eq!(one.def.digest, other.def.digest, "the same content is the same flow"),
        (Err(one), Err(other)) => {
            one.faults.iter().for_each(|fault| stands_in(text, fault));
            let messages = |error: &DeployError| error.faults.iter().map(|f| f.message.clone()).collect::<Vec<_>>();
            assert_eq!(messages(&one), messages(&other));
        }
        (one, other) => panic!("the text and its canonical form: {one:?}, {other:?}"),
    }
    Verdict::Taken
}

/// JSON is YAML: the definition as its own text.
fn canonical(spec: &FlowSpec) -> String {
    serde_json::to_string(&FlowFile { flow: spec.clone() }).expect("a flow is JSON")
}

/// A fault has a place, and its place is in the text.
fn stands_in(text: &str, fault: &FlowFault) {
    // As YAML has it, a carriage return alone ends a line, too.
    let text = text.replace("\r\n", "\n");
    let lines: Vec<&str> = text.split_terminator(['\n', '\r']).collect();
    let line = usize::try_from(fault.line).ok().and_then(|line| line.checked_sub(1)).expect("a fault has a line");
    // The end of a text that ends with a newline is the beginning of the line after it.
    let here = lines.get(line).copied().unwrap_or_else(|| {
        assert_eq!(line, lines.len(), "line {} of {}: {}", fault.line, lines.len(), fault.message);
        ""
    });
    let columns = here.chars().count() as u64 + 1;
    assert!((1..=columns).contains(&fault.column), "column {} of {columns}: {}", fault.column, fault.message);
    assert!(!fault.message.is_empty() && !fault.message.contains('\n'), "{:?}", fault.message);
    let shown = fault.to_string();
    assert!(shown.contains(&format!(":{}:{}: ", fault.line, fault.column)), "{shown}");
}

/// Takes any component for a step that needs nothing.
struct Anything;

impl Inspect for Anything {
    fn inspect(&self, _: BorrowedFd<'_>) -> Result<Inspection, InspectError> {
        let exports = vec!["tracemind:flow/step@0.1.0".to_owned()];
        let (imports, import_faults, required) = (vec![], vec![], Required::default());
        Ok(Inspection { digest: Digest([0; 32]), imports, exports, import_faults, required })
    }
}

fn registered(text: &str, flow: &FlowText) -> Result<Resolved, DeployError> {
    let component = File::from(sealed::make(b"a component").expect("a memory file"));
    let components: Vec<_> = flow.spec.steps.iter().map(|_| Ok(component.try_clone().expect("a descriptor"))).collect();
    let (path, components) = (Path::new(PATH), components.as_slice());
    let source = Source { tenant: "default", text, path, shown: path, components };
    let settings = Settings::default();
    resolve(&source, &settings, &settings.ceilings, &MiniJinja::new(), &mut KnownFiles::default(), &Anything)
}
