//! How bodies that travel as one become one: lines as they are, JSON by a filter over all of them.

use bytes::Bytes;

use super::content::{Kind, lines_of};
use crate::{
    call::Join,
    filter::{self, Context, Filter, FilterError, Val},
};

/// Lines, one after the other. A body that ends its last line is followed by the next line, not by an empty one.
pub(crate) fn lines() -> Join {
    let join = |bodies: Vec<Bytes>, max| {
        let is_ended = bodies.last().is_some_and(|last| last.ends_with(b"\n"));
        let lines = bodies.iter().map(|body| match body.strip_suffix(b"\n") {
            Some(line) => body.slice_ref(line),
            None => body.clone(),
        });
        let lines = lines.chain(is_ended.then(Bytes::new)).collect();
        lines_of(lines, max).map_err(|error| error.to_string())
    };
    Join { reads: false, join: Box::new(join) }
}

/// JSON: what the filter makes of an array of the bodies.
pub(crate) fn json(filter: Filter) -> Join {
    let join = move |bodies: Vec<Bytes>, max| {
        let bodies = bodies.iter().map(|body| filter::parse(body)).collect::<Result<_, _>>()?;
        let outputs = filter.run(Val::Arr(std::sync::Arc::new(bodies)), &Context::default())?;
        Kind::Json.body(&outputs, max)
    };
    Join {
        reads: true,
        join: Box::new(move |bodies, max| {
            join(bodies, max).map_err(|error: FilterError| error.to_string())
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_become_one_or_it_is_said_why_not() {
        let joined = |join: &Join, bodies: &[&'static str], max| {
            let bodies = bodies.iter().map(|body| Bytes::from_static(body.as_bytes())).collect();
            let joined = (join.join)(bodies, max);
            joined.map(|body| String::from_utf8(body.to_vec()).unwrap())
        };
        assert_eq!(
            joined(&lines(), &["a 1", "b 2\nc 3", ""], 20),
            Ok("a 1\nb 2\nc 3\n".to_owned())
        );
        let ended = joined(&lines(), &["a 1\n", "b 2\nc 3\n", "d 4\n"], 20);
        assert_eq!(ended, Ok("a 1\nb 2\nc 3\nd 4\n".to_owned()), "no line is empty");
        assert!(joined(&lines(), &["a 1", "b 2"], 6).unwrap_err().contains("more than 6"));
        let streams = json(Filter::compile("{streams: map(.streams[])}").unwrap());
        let bodies = [r#"{"streams":[1,2]}"#, r#"{"streams":[]}"#, r#"{"streams":[{"a":3}]}"#];
        assert_eq!(joined(&streams, &bodies, 99), Ok(r#"{"streams":[1,2,{"a":3}]}"#.to_owned()));
        for (bodies, max, why) in
            [(&["{}"][..], 99, "iterable"), (&["{"], 99, "EOF"), (&bodies, 10, "more than 10")]
        {
            let error = joined(&streams, bodies, max).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let many = json(Filter::compile(".[]").unwrap());
        assert!(joined(&many, &["1", "2"], 99).unwrap_err().contains("2 bodies"));
    }
}
