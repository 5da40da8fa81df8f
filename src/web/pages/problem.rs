//! Pages that say that something did not work.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::html;

use super::super::picture::what;
use super::layout;
use super::pieces::sentence;
use crate::store::StoreError;

/// Why there is no page, or nothing was done.
#[derive(Debug)]
pub(in crate::web) struct Problem {
    status: StatusCode,
    title: &'static str,
    text: String,
}

impl Problem {
    /// There is nothing at this address.
    pub(in crate::web) fn not_found() -> Self {
        Self::missing("There is nothing at this address.".to_owned())
    }

    /// There is no such thing.
    pub(in crate::web) fn missing(text: String) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            title: "Not found",
            text,
        }
    }

    /// What was asked for cannot be done, as things are.
    pub(in crate::web) fn refused(text: String) -> Self {
        Self {
            status: StatusCode::CONFLICT,
            title: "Nothing was done",
            text,
        }
    }

    /// The store did not answer.
    pub(in crate::web) fn store(error: &StoreError) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            title: what(error),
            text: error.to_string(),
        }
    }

    /// The store did not answer, and it is not known whether something was changed.
    pub(in crate::web) fn perhaps_done(error: &StoreError) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            title: what(error),
            text: format!(
                "{error}. It may have been done all the same: look again once the database answers"
            ),
        }
    }

    /// It took too long.
    pub(in crate::web) fn too_slow() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            title: "This took too long",
            text: "The database is slow or away. Try again in a moment.".to_owned(),
        }
    }

    /// A page of another site made the request.
    pub(in crate::web) fn other_site() -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            title: "Nothing was done",
            text: "This request came from a page of another site. Where a proxy stands in front, it has to hand the \
                   `Host` on as it came."
                .to_owned(),
        }
    }

    /// It came without TLS, with something that others could read.
    pub(in crate::web) fn not_by_tls() -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            title: "Nothing was done",
            text: "This came without TLS, so others on the way could read it. Use `https://`; and if the token was in it, \
                   make a new one and set ORGSTREAM_WEB_TOKEN to it."
                .to_owned(),
        }
    }

    /// A form that was shown before the sign-in, or to somebody else.
    pub(in crate::web) fn old_form() -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            title: "Nothing was done",
            text: "This form is not from your present session. Go back, load the page again, and try once more."
                .to_owned(),
        }
    }

    /// Something else than a form.
    pub(in crate::web) fn no_form() -> Self {
        Self {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            title: "Nothing was done",
            text: "This takes a form: `application/x-www-form-urlencoded`.".to_owned(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let page = layout::bare(
            self.title,
            &html! {
                h1 { (self.title) }
                p { (sentence(&self.text)) }
                p { a href="/" { "To all subscriptions" } }
            },
        );
        (self.status, page).into_response()
    }
}
