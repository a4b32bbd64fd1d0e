// WordPress: `install` fills in the page of the installation, `write TITLE` signs in and publishes a post, `read TITLE` finds it as a visitor.

import { check, run } from './page.mjs';

const USER = 'walker';
const PASSWORD = 'A long walk, 2000 steps';

await run(async (page, url, action, ...words) => {
  const title = words.join(' ');
  if (action === 'install') await install(page);
  else if (action === 'write') await write(page, url, title);
  else await read(page, url, title);
});

async function install(page) {
  check(page.url().includes('/wp-admin/install.php'), 'a new site leads to its installation');
  // The page of languages comes first where translations are there.
  if (await page.locator('#language-continue').count()) {
    await Promise.all([page.waitForNavigation(), page.click('#language-continue')]);
  }
  await page.fill('#weblog_title', 'A walk through the mesh');
  await page.fill('#user_login', USER);
  await page.fill('#pass1', PASSWORD);
  await page.fill('#admin_email', 'walker@example.com');
  await Promise.all([page.waitForNavigation(), page.click('#submit')]);
  await page.getByText('Success!').waitFor();
}

async function write(page, url, title) {
  await page.goto(`${url}/wp-login.php`);
  await page.fill('#user_login', USER);
  await page.fill('#user_pass', PASSWORD);
  await Promise.all([page.waitForURL('**/wp-admin/**'), page.click('#wp-submit')]);
  await page.goto(`${url}/wp-admin/post-new.php`);
  const heading = await titleField(page);
  // The editor greets who sees it first, and does so a moment after it is there.
  const greeting = page.getByRole('dialog').getByRole('button', { name: 'Close' });
  await page.addLocatorHandler(greeting, () => greeting.click());
  await heading.fill(title);
  await page.keyboard.press('Enter');
  await page.keyboard.type('Written in a browser, kept in a database.');
  await page.locator('.editor-post-publish-panel__toggle, .editor-post-publish-button__button').first().click();
  await page.locator('.editor-post-publish-panel .editor-post-publish-button').click();
  await page.locator('.post-publish-panel__postpublish').getByText('is now live').waitFor();
}

/** Where a post's title is written: in the page itself, or in a frame of it, as the version has it. */
async function titleField(page) {
  await page.locator('.editor-post-title__input, iframe[name=editor-canvas]').first().waitFor();
  const frame = page.locator('iframe[name=editor-canvas]');
  const place = (await frame.count()) ? frame.contentFrame() : page;
  return place.locator('.editor-post-title__input');
}

async function read(page, url, title) {
  await page.goto(url);
  const link = page.getByRole('link', { name: title, exact: true }).first();
  await Promise.all([page.waitForNavigation(), link.click()]);
  await page.getByText('Written in a browser, kept in a database.').first().waitFor();
}
