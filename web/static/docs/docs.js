SwaggerUIBundle({
  url: '/openapi.yaml',
  dom_id: '#docs',
  deepLinking: true,
  validatorUrl: null, // it would send the document to a host of the library's makers
});
