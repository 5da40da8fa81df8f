//! The client credentials flow (facts 8.2), and the `oauth2` client that it shares with the refresh
//! token flow.

use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse,
};
use oauth2::{
    AuthType, Client, ClientId, ClientSecret, EndpointNotSet, EndpointSet, RequestTokenError,
    StandardRevocableToken, TokenUrl,
};
use secrecy::{ExposeSecret, SecretString};

use super::TOKEN_PATH;
use super::errors::Failure;
use super::http::LoginHttp;
use super::org::TokenAnswer;
use crate::salesforce::Origin;

/// An `oauth2` client that knows a token endpoint and Salesforce's fields.
pub(super) type LoginClient = Client<
    BasicErrorResponse,
    TokenAnswer,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

pub(super) fn login_client(
    login: &Origin,
    client_id: &str,
    client_secret: Option<&SecretString>,
) -> Result<LoginClient, Failure> {
    let url = TokenUrl::new(format!("{login}{TOKEN_PATH}"))
        .map_err(|error| Failure::passing(error.to_string()))?;
    let mut client = Client::new(ClientId::new(client_id.to_owned()))
        .set_auth_type(AuthType::RequestBody)
        .set_token_uri(url);
    if let Some(secret) = client_secret {
        client = client.set_client_secret(ClientSecret::new(secret.expose_secret().to_owned()));
    }
    Ok(client)
}

/// What the transport said is classified already; what the parser says could repeat the token.
pub(super) fn failure(error: RequestTokenError<Failure, BasicErrorResponse>) -> Failure {
    match error {
        RequestTokenError::Request(failure) => failure,
        _ => Failure::passing("the login host's answer is not that of a token endpoint"),
    }
}

pub(super) struct ClientCredentials {
    client: LoginClient,
}

impl ClientCredentials {
    pub(super) fn new(
        login: &Origin,
        client_id: &str,
        client_secret: &SecretString,
    ) -> Result<Self, Failure> {
        Ok(Self {
            client: login_client(login, client_id, Some(client_secret))?,
        })
    }

    pub(super) async fn grant(&self, http: &LoginHttp) -> Result<TokenAnswer, Failure> {
        self.client
            .exchange_client_credentials()
            .request_async(http)
            .await
            .map_err(failure)
    }
}
