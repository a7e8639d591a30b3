//! `cargo xtask openapi`: the management API as OpenAPI 3.1, made of the sources that are the API: the table of routes
//! and the serde types of `monitor/wire/src/api.rs`, and the few types of `attestation/formats` that it names.
//!
//! Nothing trusted is asked to describe itself, and no trusted crate gets a dependency for it. What the sources say in
//! a way this does not understand is an error, not a gap.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};
use syn::{Attribute, Fields, GenericArgument, Item, PathArguments, Type};

use crate::workspace::Workspace;

/// The document.
pub const FILE: &str = "monitor/wire/openapi.json";
const API: &str = "monitor/wire/src/api.rs";
/// Where types come from, the table's own file first.
const SOURCES: [&str; 5] = [
    API,
    "attestation/formats/src/protocol.rs",
    "attestation/formats/src/launch.rs",
    "disks/vault/src/requests.rs",
    "disks/vault/src/volume.rs",
];

/// Types that are text in JSON: name, pattern, what they are.
const TEXTS: [(&str, &str, &str); 5] = [
    (
        "Owner",
        "^(image:[0-9a-f]{64}|signer:[0-9a-f]{64}(,svn=[0-9]+)?|open)$",
        "who may attach a volume",
    ),
    ("Digest", "^[0-9a-f]{64}$", "SHA-256, hex"),
    ("Nonce", "^[0-9a-f]{64}$", "32 bytes, hex"),
    ("InstanceId", "^[0-9a-f]{32}$", "16 bytes, hex"),
    ("HexBytes", "^([0-9a-f]{2})*$", "bytes, hex"),
];

/// Writes the document.
pub fn write(workspace: &Workspace) -> Result<()> {
    let text = format!("{:#}\n", document(workspace)?);
    std::fs::write(workspace.root().join(FILE), text).context("cannot write the document")
}

/// The document as the sources have it now.
pub fn document(workspace: &Workspace) -> Result<Value> {
    let read = |name: &str| {
        std::fs::read_to_string(workspace.root().join(name))
            .with_context(|| format!("cannot read `{name}`"))
    };
    let mut types = BTreeMap::new();
    for source in SOURCES {
        let file = syn::parse_file(&read(source)?).with_context(|| source.to_owned())?;
        for item in file.items {
            if let Item::Struct(syn::ItemStruct { ident, .. })
            | Item::Enum(syn::ItemEnum { ident, .. }) = &item
            {
                types.entry(ident.to_string()).or_insert(item);
            }
        }
    }
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for route in routes(&read(API)?)? {
        let methods = paths.entry(route.path.clone()).or_default();
        methods.insert(route.method.to_lowercase(), route.operation());
    }
    let mut schemas = BTreeMap::new();
    let named = json!(paths).to_string();
    let error = reference("ErrorBody").to_string();
    collect(&(named + &error), &types, &mut schemas)?;
    Ok(sorted(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Coffer monitor",
            "version": "1",
            "description": "The management API of a Coffer host (SPEC 6.4). Its caller creates, starts, stops and denies \
                service; it cannot look into a closed box or change what it is.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": { "schemas": schemas },
    })))
}

/// Every type that `text` refers to, and what those refer to.
fn collect(
    text: &str,
    types: &BTreeMap<String, Item>,
    into: &mut BTreeMap<String, Value>,
) -> Result<()> {
    for name in text.split("#/components/schemas/").skip(1) {
        let name = name.split('"').next().unwrap_or_default();
        if into.contains_key(name) {
            continue;
        }
        let item = types.get(name).with_context(|| format!("no source has a type `{name}`"))?;
        let schema = schema_of(item).with_context(|| format!("`{name}`"))?;
        into.insert(name.to_owned(), schema.clone());
        collect(&schema.to_string(), types, into)?;
    }
    Ok(())
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// Keys in order, whatever the JSON library was built to do.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: BTreeMap<String, Value> =
                map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            Value::Object(ordered.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// One row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Route {
    method: String,
    path: String,
    body: String,
    answer: String,
}

/// Rows of the table in the module's head: `` | `METHOD /path` | body | answer | ``.
fn routes(source: &str) -> Result<Vec<Route>> {
    let rows = source.lines().filter_map(|line| line.strip_prefix("//! | `"));
    rows.map(|row| {
        let (first, rest) = row.split_once("` |").context("a row without cells")?;
        let (body, answer) = rest.trim_end_matches('|').split_once('|').context("two cells")?;
        let (method, path) = first.split_once(' ').context("a method and a path")?;
        let (body, answer) = (body.trim().to_owned(), answer.trim().to_owned());
        Ok(Route { method: method.into(), path: path.into(), body, answer })
    })
    .collect()
}

impl Route {
    fn operation(&self) -> Value {
        let mut operation = json!({
            "operationId": self.id(),
            "description": plain(&self.answer),
            "responses": self.responses(),
        });
        let mut parameters = Vec::new();
        if self.path.contains("{id}") {
            parameters.push(json!({
                "name": "id", "in": "path", "required": true, "schema": { "type": "string" },
                "description": "name of a VM, its instance id, or an unambiguous prefix of that",
            }));
        }
        if let Some((name, _)) = self.body.strip_prefix("`?").and_then(|q| q.split_once('=')) {
            parameters
                .push(json!({ "name": name, "in": "query", "schema": { "type": "boolean" } }));
        } else if let Some(name) = type_in(&self.body) {
            put(
                &mut operation,
                "requestBody",
                json!({
                    "required": true,
                    "content": { "application/json": { "schema": reference(&name) } },
                }),
            );
        }
        if self.body.starts_with("bytes") {
            let content = json!({ "application/octet-stream": {} });
            put(&mut operation, "requestBody", json!({ "required": true, "content": content }));
        }
        if !parameters.is_empty() {
            put(&mut operation, "parameters", json!(parameters));
        }
        operation
    }

    /// `get-vms-id-logs`.
    fn id(&self) -> String {
        let path = self.path.trim_start_matches("/v1").trim_start_matches('/');
        let path = path.replace(['/', '.'], "-");
        format!("{}-{}", self.method.to_lowercase(), path.replace(['{', '}'], ""))
    }

    fn responses(&self) -> Value {
        let status =
            |text: &str| text.get(..3).filter(|s| s.parse::<u16>().is_ok()).map(str::to_owned);
        let mut statuses = vec![status(&self.answer).unwrap_or_else(|| "200".into())];
        statuses.extend(self.answer.split("; ").skip(1).filter_map(status));
        let mut responses = Map::new();
        for status in statuses {
            let mut response = json!({ "description": plain(&self.answer) });
            if let Some((media, schema)) = self.content() {
                put(&mut response, "content", json!({ media: { "schema": schema } }));
            }
            responses.insert(status, response);
        }
        let error = json!({
            "description": "refused: a code, one clause, what to try",
            "content": { "application/json": { "schema": reference("ErrorBody") } },
        });
        responses.insert("default".into(), error);
        Value::Object(responses)
    }

    fn content(&self) -> Option<(&'static str, Value)> {
        let named = type_in(&self.answer).map(|name| reference(&name));
        Some(match (named, self.answer.as_str()) {
            (Some(items), answer) if answer.starts_with("list of") => {
                ("application/json", json!({ "type": "array", "items": items }))
            }
            (Some(line), answer) if answer.starts_with("lines of") => ("application/jsonl", line),
            (Some(schema), _) => ("application/json", schema),
            (None, answer) if answer.ends_with("text") => {
                ("text/plain", json!({ "type": "string" }))
            }
            (None, "the raw TCG log") => ("application/octet-stream", json!({})),
            (None, answer) if answer.contains("OpenAPI") => {
                ("application/json", json!({ "type": "object" }))
            }
            (None, _) => return None,
        })
    }
}

/// The first type that a cell names.
fn type_in(cell: &str) -> Option<String> {
    let name = cell.split('`').nth(1)?.rsplit("::").next()?;
    name.starts_with(|c: char| c.is_ascii_uppercase()).then(|| name.to_owned())
}

fn plain(cell: &str) -> String {
    cell.replace(['`', '[', ']'], "").replace("coffer_formats::protocol::", "")
}

fn schema_of(item: &Item) -> Result<Value> {
    let (mut schema, attributes) = match item {
        Item::Struct(item) => (structure(&item.fields, &item.attrs)?, &item.attrs),
        Item::Enum(item) => {
            let words = Words::of(&item.attrs)?;
            let named = item.variants.iter().map(|v| words.spell(&v.ident.to_string()));
            let named = named.collect::<Vec<_>>();
            anyhow::ensure!(
                item.variants.iter().all(|v| matches!(v.fields, Fields::Unit)),
                "an enum with more than names"
            );
            (json!({ "type": "string", "enum": named }), &item.attrs)
        }
        _ => bail!("neither a struct nor an enum"),
    };
    if let Some(text) = documentation(attributes) {
        put(&mut schema, "description", text);
    }
    Ok(schema)
}

fn structure(fields: &Fields, attributes: &[Attribute]) -> Result<Value> {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    let of_all = Words::of(attributes)?;
    for field in fields.iter().filter(|field| field.ident.is_some()) {
        let words = Words::of(&field.attrs)?;
        let name = field.ident.as_ref().map(ToString::to_string).unwrap_or_default();
        let name = words.rename.clone().unwrap_or(name);
        let mut schema = schema_for(&field.ty)?;
        if let Some(text) = documentation(&field.attrs) {
            put(&mut schema, "description", text);
        }
        if !words.default && !of_all.default && !is_option(&field.ty) {
            required.push(name.clone());
        }
        properties.insert(name, schema);
    }
    let mut schema = json!({ "type": "object", "properties": properties });
    if !required.is_empty() {
        put(&mut schema, "required", json!(required));
    }
    if of_all.strict {
        put(&mut schema, "additionalProperties", false);
    }
    Ok(schema)
}

fn schema_for(of: &Type) -> Result<Value> {
    let Type::Path(path) = of else { bail!("a type that is no name") };
    let last = path.path.segments.last().context("a type without a name")?;
    let name = last.ident.to_string();
    let inner = |at: usize| match &last.arguments {
        PathArguments::AngleBracketed(inner) => match inner.args.iter().nth(at) {
            Some(GenericArgument::Type(inner)) => schema_for(inner),
            _ => bail!("`{name}` of what?"),
        },
        _ => bail!("`{name}` of what?"),
    };
    Ok(match name.as_str() {
        "String" => json!({ "type": "string" }),
        "bool" => json!({ "type": "boolean" }),
        "f64" => json!({ "type": "number" }),
        "u8" => json!({ "type": "integer", "minimum": 0, "maximum": u8::MAX }),
        "u16" => json!({ "type": "integer", "minimum": 0, "maximum": u16::MAX }),
        "u32" | "u64" => json!({ "type": "integer", "minimum": 0 }),
        "NonZeroU32" | "NonZeroU64" => json!({ "type": "integer", "minimum": 1 }),
        "Vec" => json!({ "type": "array", "items": inner(0)? }),
        "BTreeMap" => json!({ "type": "object", "additionalProperties": inner(1)? }),
        "Option" => json!({ "anyOf": [inner(0)?, { "type": "null" }] }),
        text if TEXTS.iter().any(|(name, ..)| *name == text) => {
            let (_, pattern, what) = TEXTS.iter().find(|(name, ..)| *name == text).context("it")?;
            json!({ "type": "string", "pattern": pattern, "description": what })
        }
        other => reference(other),
    })
}

fn is_option(of: &Type) -> bool {
    matches!(of, Type::Path(path) if path.path.segments.last().is_some_and(|s| s.ident == "Option"))
}

/// What serde is told of a type or a field.
#[derive(Default)]
struct Words {
    rename: Option<String>,
    rename_all: Option<String>,
    default: bool,
    strict: bool,
}

impl Words {
    fn of(attributes: &[Attribute]) -> Result<Self> {
        let mut words = Self::default();
        for attribute in attributes.iter().filter(|a| a.path().is_ident("serde")) {
            attribute.parse_nested_meta(|meta| {
                let word = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
                let text = match meta.value() {
                    Ok(value) => Some(value.parse::<syn::LitStr>()?.value()),
                    Err(_) => None,
                };
                match word.as_str() {
                    "rename" => words.rename = text,
                    "rename_all" => words.rename_all = text,
                    "default" => words.default = true,
                    "deny_unknown_fields" => words.strict = true,
                    "skip_serializing_if"
                    | "transparent"
                    | "with"
                    | "try_from"
                    | "into"
                    | "tag"
                    | "untagged"
                    | "serialize_with"
                    | "deserialize_with" => {}
                    other => return Err(meta.error(format!("serde's `{other}` is not known"))),
                }
                Ok(())
            })?;
        }
        Ok(words)
    }

    fn spell(&self, variant: &str) -> String {
        match self.rename_all.as_deref() {
            Some("lowercase") => variant.to_lowercase(),
            Some("kebab-case") => {
                let mut spelled = String::new();
                for c in variant.chars() {
                    if c.is_ascii_uppercase() && !spelled.is_empty() {
                        spelled.push('-');
                    }
                    spelled.push(c.to_ascii_lowercase());
                }
                spelled
            }
            _ => variant.to_owned(),
        }
    }
}

fn documentation(attributes: &[Attribute]) -> Option<String> {
    let lines = attributes.iter().filter(|a| a.path().is_ident("doc")).filter_map(|a| {
        match &a.meta.require_name_value().ok()?.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => {
                Some(text.value().trim().to_owned())
            }
            _ => None,
        }
    });
    let text = lines.collect::<Vec<_>>().join(" ");
    (!text.is_empty()).then_some(text)
}

/// Sets a field of an object.
fn put(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(name.to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn pairs_of_router(source: &str) -> BTreeSet<(String, String)> {
        let packed: String = source.split_whitespace().collect();
        let router = packed.split("Router::new()").nth(1).unwrap();
        let mut pairs = BTreeSet::new();
        for route in router.split(".fallback(").next().unwrap().split(".route(\"").skip(1) {
            let (path, handlers) = route.split_once("\",").unwrap();
            let before = pairs.len();
            for method in ["get", "post", "put", "delete", "patch"] {
                let opened = format!("{method}(");
                if handlers.starts_with(&opened) || handlers.contains(&format!(".{opened}")) {
                    pairs.insert((method.to_owned(), path.to_owned()));
                }
            }
            assert!(pairs.len() > before, "no method is seen in `{route}`");
        }
        pairs
    }

    #[test]
    fn the_document_is_what_the_sources_say() {
        let workspace = Workspace::find().unwrap();
        let written = std::fs::read_to_string(workspace.root().join(FILE)).unwrap();
        let written: Value = serde_json::from_str(&written).unwrap();
        let made = document(&workspace).unwrap();
        assert!(written == made, "`{FILE}` is old; `cargo xtask openapi` writes it");
    }

    #[test]
    fn every_route_of_the_router_is_in_the_document_and_no_other() {
        let workspace = Workspace::find().unwrap();
        let sources = ["routes.rs", "volume_routes.rs"].map(|file| {
            let source = workspace.root().join("monitor/supervisor/src").join(file);
            std::fs::read_to_string(source).unwrap()
        });
        let router: BTreeSet<_> = sources.iter().flat_map(|text| pairs_of_router(text)).collect();
        let document = document(&workspace).unwrap();
        let documented: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(|method| (method.clone(), path.clone()))
            })
            .collect();
        assert!(documented.len() > 15);
        assert_eq!(router, documented);
    }

    #[test]
    fn a_router_that_differs_is_seen() {
        let one =
            r#"Router::new().route("/a", get(x).post(y)).route("/b/{id}", delete(z)).fallback(w)"#;
        let expected = [("get", "/a"), ("post", "/a"), ("delete", "/b/{id}")];
        let expected = expected.map(|(m, p)| (m.to_owned(), p.to_owned())).into();
        assert_eq!(pairs_of_router(one), expected);
    }

    #[test]
    fn what_serde_says_is_in_the_schema() {
        let file: syn::File = syn::parse_str(
            r#"
            /// Two lines
            /// of it.
            #[serde(deny_unknown_fields)]
            pub struct S {
                /// A kind.
                #[serde(rename = "box")]
                pub kind: E,
                pub maybe: Option<u8>,
                #[serde(default)]
                pub many: Vec<String>,
            }
            #[serde(rename_all = "kebab-case")]
            pub enum E { OnFailure, No }
            "#,
        )
        .unwrap();
        let schemas: Vec<Value> = file.items.iter().map(|item| schema_of(item).unwrap()).collect();
        assert_eq!(schemas[0]["required"], json!(["box"]));
        assert_eq!(schemas[0]["additionalProperties"], json!(false));
        assert_eq!(schemas[0]["description"], "Two lines of it.");
        let null = json!({ "type": "null" });
        assert_eq!(schemas[0]["properties"]["maybe"]["anyOf"][1], null);
        assert_eq!(schemas[1]["enum"], json!(["on-failure", "no"]));
        let odd: syn::File = syn::parse_str("#[serde(flatten)] struct S;").unwrap();
        assert!(schema_of(&odd.items[0]).is_err(), "what is not understood is said");
    }

    #[test]
    fn rows_of_the_table_become_operations() {
        let rows = routes(concat!(
            "//! | `GET /v1/vms/{id}/logs` | `?follow=true` streams | text |\n",
            "//! | `POST /v1/vms` | [`CreateVm`] | 201 [`VmInfo`]; 200 if it was there |\n",
            "//! | `DELETE /v1/vms/{id}` | | 204 |\n",
        ))
        .unwrap();
        let logs = rows[0].operation();
        assert_eq!(logs["parameters"][1]["name"], "follow");
        assert!(logs["responses"]["200"]["content"]["text/plain"].is_object());
        let create = rows[1].operation();
        for status in ["200", "201"] {
            let content = &create["responses"][status]["content"]["application/json"];
            assert_eq!(content["schema"], reference("VmInfo"));
        }
        assert_eq!(rows[2].body, "");
        assert!(rows[2].operation()["responses"]["204"]["content"].is_null());
    }
}
