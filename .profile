# Read by Heroku before a dyno's command, one-off dynos too: `heroku run orgstream status`.
export PATH="$HOME/target/release:$PATH"
