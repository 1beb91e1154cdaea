//! Every filter ends, whatever it is and whatever it reads; and those that end well mean what jq says.

use jaq_core::{
    Compiler, Ctx, Vars,
    data::JustLut,
    load::{Arena, File, Loader},
};
use proptest::{collection::vec, prelude::*, sample::select, test_runner::RngSeed};

use super::{fuel::Spent, *};

/// Where random filters begin.
const SEED: u64 = 1;

/// What a payload of a device at the default of `max_filter_bytes` can hold of one item.
fn list(item: &str) -> String {
    let count = 256 * 1024 / (item.len() + 1) - 1;
    format!("[{}]", vec![item; count].join(","))
}

fn ends(filter: &str, input: &str) -> Result<Vec<Val>, FilterError> {
    let input = parse(input.as_bytes()).unwrap();
    let context = Context { payload: input.clone(), ..Context::default() };
    let run = Filter::compile(filter).unwrap().run(input, &context);
    if let Err(error) = &run {
        assert_ne!(error.0, Spent::Defect.to_string(), "{filter}");
    }
    run
}

/// Filters that took all time or memory there was, or ended the process.
#[test]
fn no_filter_takes_all_there_is() {
    let words = format!("\"{}\"", "a b ".repeat(25_000));
    let path = format!("{{\"path\":\"{}\",\"value\":1}}", "a/".repeat(20_000));
    let dots = format!("[{}|empty]", vec!["(.,.,.,.)"; 16].join("|"));
    let pairs = [
        ("{t: (.t * .n)}", r#"{"t":"ab","n":1000000000000}"#),
        (".t * .n", r#"{"t":"ab","n":3000000000}"#),
        (".t * 1e11 | tojson", r#"{"t":"ab"}"#),
        (".t * 100000000000", r#"{"t":"ab"}"#),
        (".t * .n", r#"{"t":"ab","n":99999999999999999999999999}"#),
        ("reduce (.path / \"/\" | .[]) as $k (.value; {($k): .})", &path),
        ("{name: gsub(\" \"; \"_\")}", &words),
        ("gsub(\"\"; \"x\")", &words),
        ("[match(\"()()()()()()()()\"; \"g\")]", &words),
        (".[] as $a | .[] as $b | select($a == 1 and $b == 1)", &list("0")),
        ("[.[] as $a | .[] as $b | .[] as $c | 1]", &list("0")),
        ("reduce .[] as $x (9999999999; . * .)", &list("0")),
        ("reduce .[] as $x (\"a\"; . + .)", &list("0")),
        ("reduce .[] as $x ([0]; . + .)", &list("0")),
        ("reduce .[] as $x (0; [., .])", &list("0")),
        ("reduce .[0:60][] as $x (0; [., .]) | tojson", &list("0")),
        ("reduce .[0:60][] as $x (0; [., .]) | . == .", &list("0")),
        ("reduce .[0:60][] as $x (0; [., .]) | . as $x | [$x, $x] | unique", &list("0")),
        ("reduce .[0:60][] as $x (0; [., .]) | {(tojson): 1}", &list("0")),
        ("reduce .[0:60][] as $x (0; [., .]) | error", &list("0")),
        (&dots, "0"),
        ("limit(1000000000; .[] , .[] | .[0]?, $payload[] | 1)", &list("0")),
        ("map(tostring | test(\"(a{1000}){1000}\"))", &list("0")),
        ("test(.)", &format!("\"{}\"", "(a{1000}".repeat(40) + &"){1000}".repeat(40))),
        ("test(.)", &format!("\"{}\"", "(".repeat(10_000))),
        ("[.[] | 1e300 | floor]", &list("0")),
        ("[.[] | localtime | mktime]", &list("0")),
        ("map(@html)", &list("0")),
        ("setpath([.[] | {}]; 1)", &list("0")),
        (".[0] as $x | [] | setpath([$payload[] | {}]; 1)", &list("0")),
        ("(reduce .[] as $x (.; .)) |= .", &list("0")),
        ("(reduce .[] as $x (.; .[0:])) |= .", &list("0")),
        ("[path(reduce .[] as $x (.; .[0:]))]", &list("0")),
        ("contains([.[] | . + 1])", &list("0")),
        ("map(tostring) | join(\",\")", &list("0")),
        ("[.[] | fromjson]", &list("\"[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]\"")),
    ];
    for (filter, input) in pairs {
        let outputs = ends(filter, input);
        let text = outputs.and_then(|outputs| {
            outputs.iter().map(|v| to_json(v, 1 << 20)).collect::<Result<Vec<_>, _>>()
        });
        assert!(text.is_err(), "{filter}");
    }
}

/// The cost is the same wherever and whenever it is measured.
#[test]
fn the_price_is_of_what_is_done() {
    let price = |filter: &str, input: &str| {
        let filter = Filter::compile(filter).unwrap();
        let (run, left) =
            filter.run_on(FUEL, parse(input.as_bytes()).unwrap(), &Context::default());
        assert!(run.is_ok(), "{filter:?}: {run:?}");
        FUEL - left
    };
    let large = list(r#"{"a":1,"b":"x"}"#);
    assert!(price(".a", "{\"a\":1}") < 20);
    assert!(price(".[0]", &large) < 20, "what is not touched costs nothing");
    assert!(price(". as $x | .[0].c = 5 | $x[0]", &large) > 15_000, "what is copied does");
    assert!(price("[.[] | .a]", &large) < FUEL);
    assert!(price("[.[0:1000][] | {b, c: (.a + 1)}]", &large) < FUEL / 2);
    assert_eq!(price("map(.a) | sort", &large), price("map(.a) | sort", &large));
}

#[test]
fn what_is_no_json_is_not_put_out() {
    for filter in ["1 / 0", "-1 / 0", "0 / 0", "nan", "[infinite]", "{a: (1 / 0)}"] {
        let outputs = ends(filter, "null").unwrap();
        let error = to_json(&outputs[0], 100).unwrap_err();
        assert!(error.0.contains("no JSON"), "{filter}: {error}");
    }
    assert!(ends("{(1): 2}", "null").is_err(), "a key is a text");
    assert!(ends("{} | .[1] = 2", "null").is_err());
    let outputs = ends("@base64d", "\"/w==\"").unwrap();
    assert!(to_json(&outputs[0], 100).is_ok(), "every text is UTF-8");
    let nested = ends("reduce .[] as $x (0; [.])", &format!("[{}0]", "0,".repeat(200)));
    assert!(to_json(&nested.unwrap()[0], 1000).is_err(), "deeper than anybody reads");
    assert!(ends("reduce .[] as $x (0; [.])", &format!("[{}0]", "0,".repeat(300))).is_err());
    assert!(to_json(&parse(b"[1,2,3]").unwrap(), 6).unwrap_err().0.contains("more than 6"));
    // Shallow things that pass through deep ones many times stay shallow.
    let filter = "reduce .[] as $x ({deep: [[[[[]]]]], n: []}; {deep, n: [.n[0], {v: $x}]})";
    assert!(ends(filter, &format!("[{}0]", "0,".repeat(300))).is_ok());
}

#[test]
fn a_filter_is_short_and_shallow_itself() {
    let deep = |open: &str, close: &str, times| open.repeat(times) + "." + &close.repeat(times);
    for text in [
        deep("[", "]", 100_000),
        deep("[", "]", 3000),
        deep("(", ")", 100),
        ".|".repeat(10_000) + ".",
    ] {
        assert!(Filter::compile(&text).is_err());
    }
    let long = [
        ".|".repeat(499) + ".",
        "-".repeat(999) + "1",
        ".,".repeat(499) + ".",
        "1+".repeat(499) + "1",
        "1*".repeat(249) + "1" + &"|-1".repeat(160),
        "if . then . elif ".repeat(200) + "." + &" end".repeat(200),
        "try ".repeat(999) + ".",
        "not|".repeat(499) + ".",
        ". as $x|".repeat(240) + ".",
        "reduce . as $x (".repeat(60) + "." + &"; .)".repeat(60),
        ".".to_owned() + &"[0]".repeat(330),
        ".".to_owned() + &"?".repeat(990),
        ".a as [$x] ?// $x|".repeat(120) + ".",
        deep("[", "]", 64),
        ".//".repeat(499) + ".",
        ". |= ".repeat(499) + ".",
    ];
    // A build without optimisation goes deeper than the gateway has room for.
    let run = move || {
        let mut known = 0;
        for text in long {
            // Whether it is understood is the library's business; it must not end the process.
            let Ok(filter) = Filter::compile(&text) else { continue };
            known += usize::from(filter.run(Val::Null, &Context::default()).is_ok());
        }
        known
    };
    let thread = std::thread::Builder::new().stack_size(32 * 1024 * 1024).spawn(run).unwrap();
    assert!(thread.join().unwrap() > 5);
}

/// The same filter on the same input by the library's own kind of value; `None` where it has no answer.
fn by_the_library(text: &str, input: Val) -> Option<Vec<String>> {
    let defs = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
    let funs = jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs());
    let arena = Arena::default();
    let modules = Loader::new(defs).load(&arena, File { code: text, path: () }).ok()?;
    let compiler = Compiler::default().with_funs(funs).with_global_vars(VARIABLES);
    let filter = compiler.compile(modules).ok()?;
    let variables = Vars::new([Val::Null, input.clone(), Val::Null, Val::Null]);
    let context = Ctx::<JustLut<Val>>::new(&filter.lut, variables);
    let outputs = filter.id.run((context, input)).take(MAX_OUTPUTS + 1);
    outputs.map(|output| output.ok().map(|value| value.to_string())).collect()
}

fn inputs() -> impl Strategy<Value = String> {
    let leaf = select(vec![
        "null",
        "true",
        "false",
        "0",
        "1",
        "-2",
        "3.5",
        "1e2",
        "\"\"",
        "\"a\"",
        "\"b c\"",
        "\"é\"",
        "\"1\"",
        "12345678901234567890",
    ]);
    leaf.prop_map(str::to_owned).prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            vec((select(vec!["a", "b", "c"]), inner), 0..3).prop_map(|entries| {
                let entries = entries.iter().map(|(key, value)| format!("\"{key}\":{value}"));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
            }),
        ]
    })
}

/// Filters that stand alone, one to a word.
const WORDS: &str = r#"
    . .a .b .[] .[0] .[-1] .[1:] .[:-1] .[0:2] .. 0 1 -1 2.5 1e5 "a" "" [] {} null true infinite
    $payload $memory empty error halt length keys sort add tojson fromjson tostring tonumber toboolean type
    to_entries from_entries flatten unique reverse explode implode ascii_downcase ascii_upcase min max not
    transpose any all values floor abs trim first last utf8bytelength gmtime todate isempty(.[]) [paths]
    has("a") has(0) indices(0) indices("a") index("a") split("a") split("") test("a") gsub("a";"b")
    [match("a|b";"g").offset] join(",") @json @base64 @uri @html @text group_by(.a) min_by(.a) bsearch(1)
    del(.[0]) del(.a) walk(.) ltrimstr("a") startswith("a") splits("a") tobytes
"#;
/// What can be done with a filter `X`.
const CALLS: &str = "
    [X] {a:X} (X)? map(X) select(X) first(X) last(X) limit(3;X) skip(1;X) [path(X)] \"x\\(X)\" -(X) sort_by(X)
    with_entries(X) del(X) map_values(X) any(X) [.[]|X] (try\u{a0}error(X)\u{a0}catch\u{a0}7) getpath(X)
    contains(X) inside(X) unique_by(X) indices(X) walk(X) group_by(X) max_by(X) add(X) pick(X) to_entries|map(X)
";
/// What can stand between two.
const OPERATORS: &str = "| , + - * / % == < >= and or // |= = += //=";

fn one_of(words: &'static str) -> impl Strategy<Value = String> {
    let words: Vec<_> = words.split_ascii_whitespace().map(|w| w.replace('\u{a0}', " ")).collect();
    select(words)
}

fn filters() -> impl Strategy<Value = String> {
    one_of(WORDS).prop_recursive(4, 20, 3, |inner| {
        let two = (inner.clone(), inner.clone());
        let three = (inner.clone(), inner.clone(), inner.clone());
        prop_oneof![
            (two.clone(), one_of(OPERATORS)).prop_map(|((a, b), op)| format!("({a} {op} {b})")),
            (inner, one_of(CALLS)).prop_map(|(a, call)| format!("({})", call.replace('X', &a))),
            // The library takes any key; JSON has only texts.
            two.clone().prop_map(|(a, b)| format!("{{({a} | tostring): {b}}}")),
            two.clone().prop_map(|(a, b)| format!("({a} as $x | {b} | [., $x])")),
            two.prop_map(|(a, b)| format!("(label $f | {a} | if {b} then ., break $f else . end)")),
            three.clone().prop_map(|(a, b, c)| format!("(reduce {a} as $x ({b}; {c}))")),
            three.clone().prop_map(|(a, b, c)| format!("[foreach {a} as $x ({b}; [., $x] | {c})]")),
            three.clone().prop_map(|(a, b, c)| format!("(if {a} then {b} else {c} end)")),
            three.prop_map(|(a, b, c)| format!("({a}[{b}:{c}])")),
        ]
    })
}

proptest! {
    // Always the same ones: where a filter catches an error, what we refuse and the library does not is a difference.
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(SEED),
        ..ProptestConfig::default()
    })]

    /// With little fuel, so that what is said here is not said of the library's patience.
    #[test]
    fn every_filter_ends_and_means_what_it_says(text in filters(), input in inputs()) {
        let Ok(filter) = Filter::compile(&text) else { return Ok(()) };
        let value = parse(input.as_bytes()).unwrap();
        let context = Context { payload: value.clone(), ..Context::default() };
        let (run, _) = filter.run_on(20_000, value.clone(), &context);
        match run {
            Err(error) => prop_assert_ne!(error.0, Spent::Defect.to_string()),
            Ok(outputs) => {
                for output in &outputs {
                    if let Ok(text) = to_json(output, 100_000) {
                        prop_assert!(json::check(&text).is_ok());
                    }
                }
                let own: Vec<String> = outputs.iter().map(ToString::to_string).collect();
                // An object's key is a text here, and anything in the library: who catches the error goes
                // on otherwise there.
                let catches = text.contains('?') || text.contains("//");
                if let Some(theirs) = by_the_library(&text, value).filter(|_| !catches) {
                    prop_assert_eq!(own, theirs);
                }
            }
        }
    }
}
