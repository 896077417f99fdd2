//! The attributes of `tm-guest`: `#[step]` exports a function as a flow's step, `#[payload]` derives JSON for a type.
//!
//! Both leave the item as it is and add tokens beside it, so an error message points at the author's own text.

use proc_macro::{Delimiter, Group, Ident, Punct, Spacing, Span, TokenStream, TokenTree};

/// Exports a function as the step of this component.
///
/// The function has the shape `fn run(ctx: &Context, Json(input): Json<In>) -> Result<Json<Out>, StepError>`; its name
/// is free. A component has exactly one step. Built natively, the function stays an ordinary function for tests.
#[proc_macro_attribute]
pub fn step(arguments: TokenStream, item: TokenStream) -> TokenStream {
    if let Some(first) = arguments.into_iter().next() {
        return refuse("#[step] takes no arguments", first.span(), item);
    }
    match function_name(&item) {
        Ok(name) => {
            let span = name.span();
            let mut out = item;
            out.extend(call("::tm_guest::export_step", name, span));
            out
        }
        Err((why, span)) => refuse(why, span, item),
    }
}

/// Derives `Serialize` and `Deserialize` for the JSON that goes into or comes out of a step.
///
/// The same as `#[derive(Serialize, Deserialize)] #[serde(crate = "tm_guest::serde")]`; the second line is what lets a
/// step do without a dependency on serde. Field attributes such as `#[serde(default)]` work.
#[proc_macro_attribute]
pub fn payload(arguments: TokenStream, item: TokenStream) -> TokenStream {
    if let Some(first) = arguments.into_iter().next() {
        return refuse("#[payload] takes no arguments", first.span(), item);
    }
    let mut out: TokenStream = "#[derive(::tm_guest::serde::Serialize, ::tm_guest::serde::Deserialize)] \
                                #[serde(crate = \"::tm_guest::serde\")]"
        .parse()
        .expect("a constant that is valid Rust");
    out.extend(item);
    out
}

/// Finds the name of a free, plain function; or says what is wrong, and where.
fn function_name(item: &TokenStream) -> Result<Ident, (&'static str, Span)> {
    let mut tokens = item.clone().into_iter();
    while let Some(token) = tokens.next() {
        let TokenTree::Ident(word) = &token else { continue };
        match word.to_string().as_str() {
            "async" => return Err(("a step is not async: it may block, the host interleaves steps", word.span())),
            "struct" | "enum" | "impl" | "mod" | "trait" | "static" => break,
            "fn" => {
                let Some(TokenTree::Ident(name)) = tokens.next() else { break };
                return match tokens.next() {
                    Some(TokenTree::Group(inputs)) if inputs.delimiter() == Delimiter::Parenthesis => Ok(name),
                    _ => Err(("a step has no generic parameters", name.span())),
                };
            }
            _ => {}
        }
    }
    Err(("#[step] stands on a function", Span::call_site()))
}

/// `path!{ name }`, with the name's own span.
fn call(path: &str, name: Ident, span: Span) -> TokenStream {
    let mut out: TokenStream = path.parse().expect("a constant path");
    out.extend([
        TokenTree::Punct(Punct::new('!', Spacing::Alone)),
        TokenTree::Group(with_span(Group::new(Delimiter::Brace, TokenTree::Ident(name).into()), span)),
    ]);
    out
}

/// The item unchanged and a compile error beside it.
fn refuse(why: &str, span: Span, item: TokenStream) -> TokenStream {
    let text = TokenTree::Literal(proc_macro::Literal::string(why));
    let mut error: TokenStream = "::core::compile_error!".parse().expect("a constant path");
    error.extend([TokenTree::Group(with_span(Group::new(Delimiter::Brace, text.into()), span))]);
    let mut out: TokenStream = error
        .into_iter()
        .map(|mut token| {
            token.set_span(span);
            token
        })
        .collect();
    out.extend(item);
    out
}

fn with_span(mut group: Group, span: Span) -> Group {
    group.set_span(span);
    group
}
