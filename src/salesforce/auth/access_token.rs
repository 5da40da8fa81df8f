//! A ready access token: no sign-in, only a look at what it is.

use secrecy::{ExposeSecret, SecretString};

use super::Session;
use super::errors::Failure;
use super::http::LoginHttp;
use super::org;
use crate::event::OrgId;
use crate::salesforce::Origin;

pub(super) struct AccessToken {
    token: SecretString,
    instance: Origin,
    org_id: Option<OrgId>,
}

impl AccessToken {
    pub(super) fn new(
        token: &SecretString,
        instance_url: &str,
        org_id: Option<&str>,
    ) -> Result<Self, Failure> {
        org::check_format(token.expose_secret())?;
        let instance = Origin::parse(instance_url).map_err(|error| {
            Failure::refused(
                format!("`salesforce.instance_url` {error}"),
                "Set it (SALESFORCE_INSTANCE_URL) to the org's My Domain, for example https://acme.my.salesforce.com",
            )
        })?;
        let org_id = org_id.map(OrgId::parse).transpose().map_err(|error| {
            Failure::refused(
                format!("`salesforce.org_id` is {error}"),
                "Copy it from Setup > Company Information > Salesforce.com Organization ID",
            )
        })?;
        Ok(Self {
            token: token.clone(),
            instance,
            org_id,
        })
    }

    pub(super) async fn session(&self, http: &LoginHttp) -> Result<Session, Failure> {
        let token = self.token.expose_secret();
        org::build(http, token, self.instance.clone(), self.org_id.clone()).await
    }
}
