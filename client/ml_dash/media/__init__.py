"""Images, figures and videos into files. Nothing here is imported before it is used, numpy included."""
