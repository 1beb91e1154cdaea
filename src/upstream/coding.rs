//! Content codings of answers [RFC 9110, 8.4]. The gateway asks for none. If the API or a proxy encodes an answer
//! nevertheless, it is decoded within the size limit for answers, or refused with the name of the coding.

use std::io::{self, Read};

use flate2::read::{MultiGzDecoder, ZlibDecoder};
use http::{HeaderMap, header::CONTENT_ENCODING};

use crate::failure::FailureKind;

/// A coding that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
}

impl Coding {
    /// The coding that these headers of an answer name, if any.
    ///
    /// # Errors
    /// [`FailureKind::Coding`] with the name of a coding that cannot be decoded.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, FailureKind> {
        let Some(name) = headers.get(CONTENT_ENCODING) else { return Ok(None) };
        let name = name.to_str().unwrap_or("?").trim();
        match name.to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(None),
            "gzip" | "x-gzip" => Ok(Some(Self::Gzip)),
            "deflate" => Ok(Some(Self::Deflate)),
            _ => Err(FailureKind::Coding(name.escape_debug().take(40).collect())),
        }
    }

    /// The body, decoded.
    ///
    /// # Errors
    /// [`FailureKind::AnswerTooLarge`] when the result has more than `max` bytes, [`FailureKind::Coding`] when the body is not
    /// in this coding.
    pub(super) fn decode(self, body: &[u8], max: usize) -> Result<Vec<u8>, FailureKind> {
        // An answer without a body, to HEAD for example, may name a coding all the same.
        if body.is_empty() {
            return Ok(Vec::new());
        }
        let mut decoded = Vec::new();
        let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
        let read = match self {
            Self::Gzip => MultiGzDecoder::new(body).take(limit).read_to_end(&mut decoded),
            Self::Deflate => ZlibDecoder::new(body).take(limit).read_to_end(&mut decoded),
        };
        read.map_err(|error: io::Error| FailureKind::Coding(format!("{self:?}: {error}")))?;
        if decoded.len() > max { Err(FailureKind::AnswerTooLarge(max)) } else { Ok(decoded) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder, write::ZlibEncoder};

    use super::*;

    fn of(name: &'static str) -> Result<Option<Coding>, FailureKind> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, name.parse().unwrap());
        Coding::of(&headers)
    }

    #[test]
    fn what_is_understood_is_decoded_within_the_bound() {
        let text = b"{\"version\":7}".repeat(1000);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&text).unwrap();
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(&text).unwrap();
        for (name, coded) in [("GZip", gzip.finish().unwrap()), ("deflate", zlib.finish().unwrap())]
        {
            let coding = of(name).unwrap().unwrap();
            assert_eq!(coding.decode(&coded, text.len()).unwrap(), text, "{name}");
            let error = coding.decode(&coded, text.len() - 1).unwrap_err();
            assert_eq!(error, FailureKind::AnswerTooLarge(text.len() - 1), "{name}");
            for wrong in [&coded[..coded.len() / 2], &coded[..coded.len() - 1], &text[..]] {
                let error = coding.decode(wrong, text.len()).unwrap_err();
                assert!(matches!(error, FailureKind::Coding(_)), "{name}: {error:?}");
            }
            assert_eq!(coding.decode(b"", 0).unwrap(), b"");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        assert_eq!(Coding::of(&HeaderMap::new()).unwrap(), None);
        assert_eq!(of(" identity ").unwrap(), None);
        for name in ["br", "gzip, gzip", "snappy"] {
            assert_eq!(of(name).unwrap_err(), FailureKind::Coding(name.to_owned()));
        }
    }
}
