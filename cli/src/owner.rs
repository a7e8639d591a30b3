//! Whom a volume is for, as the caller names it (SPEC 11.15.2). A path of an image on this machine stands for the digest
//! that the image has or that its signer has; what is asked of the monitor never names a path.

use std::path::Path;

use coffer_image::layout::Layout;
use coffer_vault::Owner;

use crate::error::Error;

/// `image:HEX`, `signer:HEX[,svn=N]`, `open`, `image=PATH` or `signer=PATH[,svn=N]`.
pub fn parse(text: &str) -> Result<Owner, Error> {
    if let Some(path) = text.strip_prefix("image=") {
        return Ok(Owner::Image(open(path)?.image_id()));
    }
    let Some(rest) = text.strip_prefix("signer=") else {
        return text.parse().map_err(|_| not_an_owner(text));
    };
    let (path, svn) = match rest.rsplit_once(",svn=") {
        Some((path, svn)) => (path, svn),
        None => (rest, "0"),
    };
    let digits = svn.bytes().all(|b| b.is_ascii_digit());
    let svn = svn.parse().ok().filter(|_| digits).ok_or_else(|| not_an_owner(text))?;
    let refused = |message: String, hint: &str| Error::Image { message, hint: hint.to_owned() };
    let signer = open(path)?.signer().map_err(|e| {
        refused(format!("the signature of `{path}`: {e}"), "sign it again with `coffer image sign`")
    })?;
    let signer = signer.ok_or_else(|| {
        refused(
            format!("nobody signed `{path}`"),
            "sign it with `coffer image sign`, or say image=PATH",
        )
    })?;
    Ok(Owner::Signer { key: signer.digest(), svn })
}

fn open(path: &str) -> Result<Layout, Error> {
    let refused = |e: coffer_image::layout::LayoutError| Error::Image {
        message: format!("`{path}`: {e}"),
        hint: e.hint().to_owned(),
    };
    Layout::open(Path::new(path)).map_err(refused)
}

fn not_an_owner(text: &str) -> Error {
    Error::usage(
        format!("`{text}` does not say whom the volume is for"),
        "write image:HEX, signer:HEX, signer:HEX,svn=N or open; or image=PATH, signer=PATH for an image on this machine",
    )
}
